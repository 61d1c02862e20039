-- What an operator does to messages by hand.

-- name: retry_shard
-- Make a shard due: its first messages, as a failure has moved them, and the first of each object that failed. Their
-- delay stays known (up to the longest, one hour), so that a shard that fails again goes on backing off from there.
-- $1 text          outbox
-- $2 int4          messages at most, as in prepare_next_from_shard
-- $3 int4[]        only objects of these categories; null: every one
-- $4 ...           the shard
-- returns          how many messages were made due
-- locks            these messages, until commit
-- index            (<sharding columns>, id); primary key of outboxd.failure; primary key
WITH wanted AS (
    SELECT head.ctid AS address
    FROM (
        SELECT o.ctid, o.scheduled_for, o.category
        FROM {table} AS o
        WHERE {is_shard:o_4}
        ORDER BY {shard:o}, o.id
        LIMIT $2::int4
    ) AS head
    WHERE head.scheduled_for > now() AND ($3::int4[] IS NULL OR head.category = ANY ($3::int4[]))
    UNION
    SELECT failed.address
    FROM {schema}.failure AS f
    CROSS JOIN LATERAL (
        SELECT o.ctid AS address, o.scheduled_for
        FROM {table} AS o
        WHERE o.id >= f.message_id AND o.id <= f.message_id
        ORDER BY o.id
        LIMIT 1
    ) AS failed
    WHERE f.outbox = $1::text
        AND f.shard_scope = {scope_value:4}
        AND f.shard_identifier = {identifier_value:4}::text
        AND f.region_name = {region_value_text:4}
        AND ($3::int4[] IS NULL OR f.category = ANY ($3::int4[]))
        AND failed.scheduled_for > now()
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
    RETURNING 1
)
SELECT count(*) AS moved FROM moved

-- name: has_messages
-- Whether anything waits in a shard.
-- $1 ...           the shard
-- returns          one boolean
-- index            (<sharding columns>, id)
SELECT EXISTS (SELECT FROM {table} AS o WHERE {is_shard:o_1}) AS found

-- name: failing_shards
-- The shards that hold back something that failed, the one that waits longest first.
-- $1 text          outbox
-- $2 int4[]        only with a failure in these categories; null: every one
-- $3 int4          shards at most
-- returns          shard_scope, shard_identifier (text), region_name ('' where there is none)
SELECT f.shard_scope, f.shard_identifier, f.region_name
FROM {schema}.failure AS f
WHERE f.outbox = $1::text AND ($2::int4[] IS NULL OR f.category = ANY ($2::int4[]))
GROUP BY f.shard_scope, f.shard_identifier, f.region_name
ORDER BY min(f.first_failed_at), f.shard_scope, f.shard_identifier, f.region_name
LIMIT $3::int4

-- name: lock_key
-- $1 ...           the shard
-- returns          the key that the shard is locked by
SELECT {lock_key:given} AS lock_key FROM (VALUES ({shard_values:1})) AS given ({shard})

-- name: count_shard
-- $1 ...           the shard
-- returns          how many messages wait in it; reads all of their index entries
-- index            (<sharding columns>, id)
SELECT count(*) AS messages FROM {table} AS o WHERE {is_shard:o_1}

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
