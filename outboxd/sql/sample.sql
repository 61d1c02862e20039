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

-- name: horizon
-- What keeps vacuum from removing dead rows, and the clock.
-- returns          is_visible (else this role may not see the sessions of others), age in transactions of the oldest
--                  snapshot that anything in this database holds, its age in seconds where a session holds it, clock
SELECT
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS is_visible,
    greatest(
        (
            SELECT max(age(a.backend_xmin))
            FROM pg_stat_activity AS a
            WHERE a.pid <> pg_backend_pid() AND (a.datname = current_database() OR a.datname IS NULL)
        ),
        (SELECT max(age(p.transaction)) FROM pg_prepared_xacts AS p WHERE p.database = current_database()),
        (SELECT max(greatest(age(s.xmin), age(s.catalog_xmin))) FROM pg_replication_slots AS s),
        0
    )::int8 AS transactions,
    coalesce(
        extract(
            epoch FROM now() - (
                SELECT min(a.xact_start)
                FROM pg_stat_activity AS a
                WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND a.backend_xmin IS NOT NULL
            )
        ),
        0
    )::float8 AS seconds,
    extract(epoch FROM clock_timestamp())::float8 AS clock
