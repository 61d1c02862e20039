-- What `outboxd doctor` asks. Nothing here writes or locks a row; what reads an outbox is bounded.
--
-- Names in braces beside those of `query.names_of`: {regclass} of the outbox; {switches}: what is switched off;
-- {canonical:x}: x.shard_identifier as kill switches are compared; {load},
-- {lag_of_first}: statements of backfill.sql; {holders}: a fragment of sample.sql.
-- Values: shard_class and worker_class int4 (lock classes), rows_max, shards_max and objects_max int8 (bounds),
-- death_counts_s int8.

-- name: daemons
-- Daemons and runs of --once that have registered, the living first, then the newest: one that dies at each start leaves
-- hundreds of rows a day. Without backend_pid nobody holds the lock of the row: it has died.
-- A running `outboxd drain` is no daemon; one that has died is a death like any other.
-- quiet_s: seconds since its claim session did anything; empty where this role may not see it.
-- returns          one row a daemon
SELECT
    w.id,
    w.host,
    w.pid,
    w.version,
    w.silo_mode,
    (
        SELECT coalesce(json_agg(o.outbox ->> 'name'), '[]')
        FROM jsonb_array_elements(CASE jsonb_typeof(w.outboxes) WHEN 'array' THEN w.outboxes ELSE '[]' END) AS o (outbox)
    ) AS outboxes,
    w.started_at,
    w.died_at,
    coalesce(w.died_at < now() - make_interval(secs => {value:death_counts_s}), false) AS is_long_dead,
    registered.pid AS backend_pid,
    a.usename::text AS role,
    round(extract(epoch FROM clock_timestamp() - a.state_change), 1)::float8 AS quiet_s,
    (
        SELECT count(*)
        FROM pg_locks AS held
        WHERE held.pid = registered.pid
            AND held.locktype = 'advisory'
            AND held.classid::int8 = {value:shard_class}
            AND held.objsubid = 2
    ) AS claimed
FROM {schema}.worker AS w
LEFT JOIN pg_locks AS registered
    ON registered.locktype = 'advisory'
    AND registered.granted
    AND registered.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND registered.classid::int8 = {value:worker_class}
    AND registered.objid::int8 = w.id
    AND registered.objsubid = 2
LEFT JOIN pg_stat_activity AS a ON a.pid = registered.pid
WHERE registered.pid IS NULL OR NOT w.outboxes @> '[{"one_shard": true}]'
ORDER BY registered.pid IS NULL, w.id DESC
LIMIT 100

-- name: locks
-- Who locks the whole table against writers, or waits to: nobody gets past either.
-- returns          one row a lock
SELECT
    l.pid,
    a.application_name AS application,
    a.usename::text AS role,
    a.state,
    l.mode,
    l.granted,
    round(extract(epoch FROM clock_timestamp() - a.xact_start), 1)::float8 AS age_s
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation'
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.relation = {regclass}
    AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY l.granted DESC, l.pid
LIMIT 10

-- name: backoff
-- How many of the shards with messages are failing; jumps from shard to shard, up to a bound.
-- returns          one row
-- index            (<sharding columns>, id); primary key of outboxd.failure
WITH RECURSIVE found AS (
    (
        SELECT {shard:o} FROM {table} AS o ORDER BY {shard:o} LIMIT 1
    )
    UNION ALL
    SELECT following.*
    FROM found
    CROSS JOIN LATERAL (
        SELECT {shard:o} FROM {table} AS o WHERE ({shard:o}) > ({shard:found}) ORDER BY {shard:o} LIMIT 1
    ) AS following
)
SELECT
    count(*) AS shards,
    count(*) FILTER (
        WHERE EXISTS (
            SELECT
            FROM {schema}.failure AS f
            WHERE f.outbox = {outbox}
                AND f.shard_scope = few.shard_scope
                AND f.shard_identifier = few.shard_identifier::text
                AND f.region_name = {region_text:few}
        )
    ) AS failing,
    count(*) >= {value:shards_max} AS is_at_least
FROM (SELECT * FROM found LIMIT {value:shards_max}) AS few
LIMIT 1

-- name: failures
-- What receivers fail with, alike errors together (numbers in them do not count), the one that holds most shards first.
-- Jumps from one shard and category to the next, up to a bound, and looks at a few objects of each: a shard in which
-- thousands fail must not hide the others. shards_at_least, objects_at_least: a bound was reached, there may be more.
-- returns          one row an error, at most five
-- index            primary key of outboxd.failure
WITH RECURSIVE found AS (
    (
        SELECT f.shard_scope, f.shard_identifier, f.region_name, f.category
        FROM {schema}.failure AS f
        WHERE f.outbox = {outbox}
        ORDER BY f.shard_scope, f.shard_identifier, f.region_name, f.category
        LIMIT 1
    )
    UNION ALL
    SELECT following.*
    FROM found
    CROSS JOIN LATERAL (
        SELECT f.shard_scope, f.shard_identifier, f.region_name, f.category
        FROM {schema}.failure AS f
        WHERE f.outbox = {outbox}
            AND (f.shard_scope, f.shard_identifier, f.region_name, f.category)
                > (found.shard_scope, found.shard_identifier, found.region_name, found.category)
        ORDER BY f.shard_scope, f.shard_identifier, f.region_name, f.category
        LIMIT 1
    ) AS following
),
few AS MATERIALIZED (
    SELECT * FROM found LIMIT {value:shards_max}
)
SELECT
    {category_name:few} AS category,
    count(DISTINCT (few.shard_scope, few.shard_identifier, few.region_name)) AS shards,
    (SELECT count(*) FROM few) >= {value:shards_max} AS shards_at_least,
    count(*) AS objects,
    (SELECT count(*) FROM few) >= {value:shards_max} OR bool_or(seen.place >= {value:objects_max}) AS objects_at_least,
    max(seen.attempts) AS attempts,
    min(seen.first_failed_at) AS first_failed_at,
    max(seen.last_failed_at) AS last_failed_at,
    min(left(seen.last_error, 300)) AS error
FROM few
CROSS JOIN LATERAL (
    SELECT f.attempts, f.first_failed_at, f.last_failed_at, f.last_error, row_number() OVER () AS place
    FROM {schema}.failure AS f
    WHERE f.outbox = {outbox}
        AND f.shard_scope = few.shard_scope
        AND f.shard_identifier = few.shard_identifier
        AND f.region_name = few.region_name
        AND f.category = few.category
    LIMIT {value:objects_max}
) AS seen
GROUP BY few.category, regexp_replace(left(seen.last_error, 200), '[0-9]+', '#', 'g')
ORDER BY 2 DESC, 6 DESC, 1
LIMIT 5

-- name: table
-- How the table is: rows and dead rows as the statistics have them, sizes in bytes, and the room of its ids.
-- last_id is empty where this role may not see it.
-- returns          one row
SELECT
    c.oid::regclass::text AS name,
    s.n_live_tup AS live_rows,
    s.n_dead_tup AS dead_rows,
    greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed_at,
    EXISTS (SELECT FROM pg_stat_progress_vacuum AS p WHERE p.relid = c.oid) AS is_being_vacuumed,
    coalesce('autovacuum_enabled=false' = ANY (c.reloptions) OR 'autovacuum_enabled=off' = ANY (c.reloptions), false)
        AS is_never_vacuumed,
    pg_relation_size(c.oid) AS table_bytes,
    pg_indexes_size(c.oid) AS index_bytes,
    age(c.relfrozenxid) AS xid_age,
    current_setting('autovacuum_freeze_max_age')::int8 AS xid_age_max,
    greatest(
        (SELECT max(o.id) FROM {table} AS o),
        CASE WHEN has_sequence_privilege(q.seqrelid, 'USAGE, SELECT') THEN pg_sequence_last_value(q.seqrelid) END
    ) AS last_id,
    least(
        coalesce(q.seqmax, 9223372036854775807),
        CASE format_type(i.atttypid, NULL) WHEN 'integer' THEN 2147483647 ELSE 9223372036854775807 END
    ) AS id_max
FROM pg_class AS c
JOIN pg_attribute AS i ON i.attrelid = c.oid AND i.attname = 'id'
LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid
LEFT JOIN pg_sequence AS q ON q.seqrelid = pg_get_serial_sequence({regclass}::text, 'id')::regclass
WHERE c.oid = {regclass}
LIMIT 1

-- name: horizon
-- What keeps vacuum from removing dead rows: transactions, prepared transactions, replication slots; first whoever does
-- so the longest, by transactions: slots and standbys have no other age.
-- sees_activity: whether this role sees what other roles do. It may be alone in its row.
-- returns          one row each
SELECT
    holder.kind,
    holder.pid,
    holder.name,
    holder.role,
    holder.state,
    round(holder.age_s::numeric, 1)::float8 AS age_s,
    holder.xid_age,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_activity
FROM (SELECT) AS once
LEFT JOIN (
{holders}
) AS holder ON true
ORDER BY holder.xid_age DESC NULLS LAST, holder.age_s DESC NULLS LAST
LIMIT 5

-- name: lag
-- How far the drain is behind: due messages that it could deliver now, and the age of the oldest; what is paused or of a
-- failing shard does not count, and no more than a bound is counted. is_off: the outbox is switched off.
-- returns          one row
-- index            (scheduled_for, <sharding columns>); primary key of outboxd.failure
WITH off AS MATERIALIZED (
    SELECT * FROM (
{switches}
    ) AS switched
    WHERE in_force
),
shards_off AS MATERIALIZED (
    SELECT shard_scope, {canonical:off} AS shard_identifier, region_name FROM off WHERE kind = 'shard'
),
categories_off AS MATERIALIZED (
    SELECT category FROM off WHERE kind = 'category'
)
SELECT
    load.scheduled AS due,
    -- The oldest of a long backlog may lie behind what is counted, but then among the first of the table.
    round(greatest(load.lag_s, CASE WHEN load.scheduled >= {value:rows_max} THEN first.lag_s END)::numeric, 1)::float8
        AS lag_s,
    EXISTS (SELECT FROM off WHERE kind = 'outbox' AND outbox = {outbox}) AS is_off
FROM (
{load}
) AS load
CROSS JOIN LATERAL (
{lag_of_first}
) AS first
LIMIT 1
