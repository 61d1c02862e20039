-- What an operator does to messages by hand.

-- name: retry_shards
-- Make shards due: the first messages of each, as a failure has moved them, and the first of each object that failed.
-- Their delay stays known (up to the longest, one hour), so that a shard that fails again goes on backing off from there.
-- $1 text          outbox
-- $2 int4          messages of a shard at most, as in prepare_next_from_shard; and objects that failed behind them
-- $3 int4[]        only objects of these categories; null: every one
-- $4 ...           the shards, one array a column
-- returns          how many messages were made due, and in how many shards
-- locks            these messages, until commit
-- index            (<sharding columns>, id); primary key of outboxd.failure; primary key
WITH wanted AS (
    SELECT moving.address
    FROM unnest({shard_arrays:4}) AS given ({shard})
    CROSS JOIN LATERAL (
        SELECT head.address
        FROM (
            SELECT o.ctid AS address, o.scheduled_for, o.category
            FROM {table} AS o
            WHERE {is_shard:o_given}
            ORDER BY {shard:o}, o.id
            LIMIT $2::int4
        ) AS head
        WHERE head.scheduled_for > now() AND ($3::int4[] IS NULL OR head.category = ANY ($3::int4[]))
        UNION
        SELECT behind.address
        FROM (
            SELECT failed.address
            FROM {schema}.failure AS f
            CROSS JOIN LATERAL (
                SELECT o.ctid AS address, o.scheduled_for
                FROM {table} AS o
                WHERE o.id >= f.message_id AND o.id <= f.message_id
                ORDER BY o.id
                LIMIT 1
            ) AS failed
            WHERE f.outbox = ANY (ARRAY[$1::text])
                AND f.shard_scope = given.shard_scope
                AND f.shard_identifier = given.shard_identifier::text
                AND f.region_name = {region_text:given}
                AND ($3::int4[] IS NULL OR f.category = ANY ($3::int4[]))
                AND failed.scheduled_for > now() -- so that the next retry goes on behind these
            ORDER BY f.outbox, f.shard_scope, f.shard_identifier, f.region_name, f.category, f.object_identifier
            LIMIT $2::int4
        ) AS behind
    ) AS moving
),
moved AS (
    UPDATE {table} AS o
    SET scheduled_for = now(),
        scheduled_from = now() - CASE -- no subtraction of what may be infinite, or millennia apart
            WHEN o.scheduled_from >= o.scheduled_for THEN interval '0'
            WHEN o.scheduled_from <= o.scheduled_for - interval '1 hour' THEN interval '1 hour'
            ELSE o.scheduled_for - o.scheduled_from
        END
    WHERE o.ctid = ANY (ARRAY(SELECT address FROM wanted))
    RETURNING {shard:o}
)
SELECT count(*) AS messages, count(DISTINCT ROW({shard})) AS shards FROM moved

-- name: has_messages
-- Whether anything waits in a shard.
-- $1 ...           the shard
-- returns          one boolean
-- index            (<sharding columns>, id)
SELECT EXISTS (SELECT FROM {table} AS o WHERE {is_shard:o_1}) AS found

-- name: categories_of_shards
-- Of which categories the first messages of shards are.
-- $1 int4          messages of a shard at most
-- $2 ...           the shards, one array a column
-- returns          categories (int4[]), a row for each shard, in the order given
-- index            (<sharding columns>, id)
SELECT
    ARRAY(
        SELECT DISTINCT head.category
        FROM (
            SELECT o.category
            FROM {table} AS o
            WHERE {is_shard:o_given}
            ORDER BY {shard:o}, o.id
            LIMIT $1::int4
        ) AS head
    ) AS categories
FROM unnest({shard_arrays:2}) WITH ORDINALITY AS given ({shard}, number)
ORDER BY given.number

-- name: failing_shards
-- A page of the shards that hold back something that failed, in the order of the index.
-- $1 text          outbox
-- $2 int4[]        only with a failure in these categories; null: every one
-- $3 int4          only of this scope; null: every one
-- $4 text          only with an identifier like this, whatever its hyphens and capitals; null: every one
-- $5 int4, $6 text, $7 text    behind this shard: shard_scope, shard_identifier, region_name; null: from the beginning
-- $8 int4          shards at most
-- returns          shard_scope, shard_identifier (text), region_name ('' where there is none)
-- index            primary key of outboxd.failure
SELECT DISTINCT f.shard_scope, f.shard_identifier, f.region_name
FROM {schema}.failure AS f
WHERE f.outbox = $1::text
    AND ($2::int4[] IS NULL OR f.category = ANY ($2::int4[]))
    AND ($3::int4 IS NULL OR f.shard_scope = $3::int4)
    AND ($4::text IS NULL OR replace(lower(f.shard_identifier), '-', '') = replace(lower($4::text), '-', ''))
    AND (
        $5::int4 IS NULL
        OR (f.shard_scope, f.shard_identifier, f.region_name) > ($5::int4, $6::text, $7::text)
    )
ORDER BY f.shard_scope, f.shard_identifier, f.region_name
LIMIT $8::int4

-- name: lock_key
-- $1 ...           the shard
-- returns          the key that the shard is locked by
SELECT {lock_key:given} AS lock_key FROM (VALUES ({shard_values:1})) AS given ({shard})

-- name: count_shard
-- $1 ...           the shard
-- returns          how many messages wait in it; reads all of their index entries
-- index            (<sharding columns>, id)
SELECT count(*) AS messages FROM {table} AS o WHERE {is_shard:o_1}

-- name: is_all_of_categories
-- Whether a shard has messages, and none that is of another category; reads on until it finds one.
-- $1 int4[]        categories
-- $2 ...           the shard
-- returns          is_all (bool)
-- index            (<sharding columns>, id)
SELECT
    EXISTS (SELECT FROM {table} AS o WHERE {is_shard:o_2})
    AND NOT EXISTS (SELECT FROM {table} AS o WHERE {is_shard:o_2} AND o.category <> ALL ($1::int4[])) AS is_all

-- name: holder
-- Who holds the lock of a shard: a session, and the daemon that it belongs to.
-- $1 int4          lock class of shards
-- $2 int8          lock key, an int4
-- $3 int4          lock class of workers
-- returns          backend pid, application_name, and of a daemon pid, host, started_at; no row when the lock is free
SELECT l.pid AS backend_pid, a.application_name, w.pid, w.host, w.started_at
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_locks AS registered
    ON registered.pid = l.pid
    AND registered.locktype = 'advisory'
    AND registered.classid::int8 = $3::int4
    AND registered.objsubid = 2
LEFT JOIN {schema}.worker AS w ON w.id = registered.objid::int8
WHERE l.locktype = 'advisory'
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::int8 = $1::int4
    AND l.objid::int8 = ($2::int8 & 4294967295) -- shown without its sign
    AND l.objsubid = 2
    AND l.granted
LIMIT 1
