-- What gauges say of an outbox table. Each statement costs about the same at any size: pages are sampled, counts are
-- bounded, the rest comes from the statistics that the server keeps anyway.

-- name: sizes
-- Messages in all, and in the deepest shard. Up to $1 pages are read, as many as there are if there are no more (then
-- the numbers are exact); the deepest shards of the sample are then counted along their index, which is why many small
-- shards on one page do not look deep.
-- $1 int8          pages to read at most
-- $2 int8          messages of one shard to count at most
-- returns          messages, depth (at least, where it is $2 or more), is_estimate
-- index            (<sharding columns>, id)
WITH extent AS (
    SELECT least(1, $1::int8::float8 * current_setting('block_size')::int8 / greatest(1, pg_relation_size({regclass}))) AS share
),
sampled AS MATERIALIZED (
    SELECT {shard:o}, count(*) AS messages
    FROM {table} AS o TABLESAMPLE SYSTEM ((SELECT 100 * share FROM extent)) REPEATABLE (1)
    GROUP BY {shard:o}
),
deepest AS MATERIALIZED (
    SELECT * FROM sampled ORDER BY messages DESC LIMIT 10
)
SELECT
    coalesce(round((SELECT sum(messages) FROM sampled) / (SELECT share FROM extent)::numeric), 0)::int8 AS messages,
    coalesce(
        (
            SELECT max((SELECT count(*) FROM (SELECT FROM {table} AS o WHERE {is_shard:o_deepest} LIMIT $2::int8) AS head))
            FROM deepest
        ),
        0
    )::int8 AS depth,
    (SELECT share < 1 FROM extent) AS is_estimate

-- name: condition
-- How the table is, and what failed or was buried; counts go no further than $2. From one failing shard to the next: a
-- shard in which thousands of objects fail must not hide the others.
-- $1 text          outbox
-- $2 int8          shards, and dead letters, to count at most
-- returns          dead_tuples, bytes (with indexes and TOAST), failing_shards, dead_letters
-- index            primary key of outboxd.failure; (outbox, buried_at) of outboxd.dead_letter
WITH RECURSIVE failing AS (
    (
        SELECT f.shard_scope, f.shard_identifier, f.region_name
        FROM {schema}.failure AS f
        WHERE f.outbox = $1::text
        ORDER BY f.shard_scope, f.shard_identifier, f.region_name
        LIMIT 1
    )
    UNION ALL
    SELECT following.*
    FROM failing
    CROSS JOIN LATERAL (
        SELECT f.shard_scope, f.shard_identifier, f.region_name
        FROM {schema}.failure AS f
        WHERE f.outbox = $1::text
            AND (f.shard_scope, f.shard_identifier, f.region_name)
                > (failing.shard_scope, failing.shard_identifier, failing.region_name)
        ORDER BY f.shard_scope, f.shard_identifier, f.region_name
        LIMIT 1
    ) AS following
)
SELECT
    pg_stat_get_dead_tuples({regclass})::int8 AS dead_tuples,
    pg_total_relation_size({regclass})::int8 AS bytes,
    (SELECT count(*) FROM (SELECT FROM failing LIMIT $2::int8) AS few) AS failing_shards,
    (SELECT count(*) FROM (SELECT FROM {schema}.dead_letter AS d WHERE d.outbox = $1::text LIMIT $2::int8) AS few)
        AS dead_letters

-- name: holders
-- A fragment: whoever holds back the vacuum of the tables in this database; the one place that says so.
-- A vacuum, other than VACUUM FULL, holds back no other one. Nor does what decodes for a logical slot, or the slot's
-- catalog_xmin: they keep catalogs only.
-- returns          kind, pid, name, role, state, age_s (null: no transaction), xid_age
SELECT
    CASE WHEN a.backend_type = 'walsender' AND a.xact_start IS NULL THEN 'standby' ELSE 'transaction' END AS kind,
    a.pid,
    a.application_name AS name,
    a.usename::text AS role,
    a.state,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_s,
    greatest(age(a.backend_xid), age(a.backend_xmin)) AS xid_age
FROM pg_stat_activity AS a
WHERE (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)
    AND a.pid <> pg_backend_pid()
    AND (
        a.datname = current_database() AND a.backend_type NOT IN ('autovacuum worker', 'parallel worker')
        OR a.backend_type = 'walsender' AND a.xact_start IS NULL
    )
    AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum AS v WHERE v.pid = a.pid)
    AND NOT (
        a.backend_type = 'walsender'
        AND EXISTS (SELECT FROM pg_replication_slots AS d WHERE d.active_pid = a.pid AND d.slot_type = 'logical')
    )
UNION ALL
SELECT
    'prepared', NULL, x.gid, x.owner::text, NULL,
    extract(epoch FROM clock_timestamp() - x.prepared)::float8, age(x.transaction)
FROM pg_prepared_xacts AS x
WHERE x.database = current_database()
UNION ALL
SELECT
    'slot', r.active_pid, r.slot_name::text, NULL, CASE WHEN r.active THEN 'active' ELSE 'inactive' END, NULL, age(r.xmin)
FROM pg_replication_slots AS r
WHERE r.xmin IS NOT NULL

-- name: horizon
-- How far back vacuum is held, of the fragment above.
-- returns          is_visible (else this role may not see the sessions of others), age in transactions of the oldest
--                  snapshot or transaction that holds vacuum back, age in seconds of the oldest transaction that does
SELECT
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS is_visible,
    coalesce(max(holder.xid_age), 0)::int8 AS transactions,
    coalesce(max(holder.age_s), 0)::float8 AS seconds
FROM (
{holders}
) AS holder

-- name: clock
-- returns          the server's clock, in Unix time
SELECT extract(epoch FROM clock_timestamp())::float8 AS clock
