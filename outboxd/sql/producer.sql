-- Statements of applications that write messages. They run in the application's own transaction, on its connection.

-- name: save
-- Write messages, in the order given; the table's defaults make them due at once.
-- $1 int4[]        categories
-- $2               object identifiers, in the column's type
-- $3 text[]        payloads as JSON, null where there is none
-- $4 text[]        headers as JSON, null where there are none; all null where the table has no such column
-- $5 …             sharding columns, one array a column
-- returns          id, in the order given
-- locks            what an INSERT takes
INSERT INTO {table} (category, object_identifier, payload, {headers_name}{shard})
SELECT new.category, new.object_identifier, new.payload::jsonb, {headers_value}{shard:new}
FROM unnest($1::int4[], $2::{object_type}[], $3::text[], $4::text[], {shard_arrays:5})
    WITH ORDINALITY AS new (category, object_identifier, payload, headers, {shard}, number)
ORDER BY new.number
RETURNING id

-- name: wake
-- Wake the daemons of this outbox, at commit; for who does not drain himself.
-- $1 text          channel
SELECT pg_notify($1::text, '')

-- name: nothing
-- Fails in a transaction that an error has broken.
SELECT 1 AS one

-- name: database
-- Which database this is: two connections that are told the same are to one.
-- returns          database, one text
SELECT concat_ws(' ', current_database(), extract(epoch FROM pg_postmaster_start_time())) AS database

-- name: still_there
-- Which of these messages are in the outbox still.
-- $1 int8[]        ids
-- returns          id of each, ascending
-- index            primary key
SELECT o.id FROM {table} AS o WHERE o.id = ANY ($1::int8[]) ORDER BY o.id

-- name: newest
-- The newest message of a shard, the key that it is locked by, and the due time of one of some messages in it.
-- $1 int8[]        ids
-- $2 ...           the shard
-- returns          id, null when the shard is empty; lock_key; due_at, null when none of them is due
-- index            (<sharding columns>, id), primary key
SELECT
    (
        SELECT o.id
        FROM {table} AS o
        WHERE {is_shard:o_2}
        ORDER BY {shard_descending:o}, o.id DESC
        LIMIT 1
    ) AS id,
    {lock_key:given} AS lock_key,
    (
        SELECT min(own.scheduled_for)
        FROM (SELECT o.scheduled_for FROM {table} AS o WHERE o.id = ANY ($1::int8[]) ORDER BY o.id) AS own
        WHERE own.scheduled_for <= now()
    ) AS due_at
FROM (VALUES ({shard_values:2})) AS given ({shard})
