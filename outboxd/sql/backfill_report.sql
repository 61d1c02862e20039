-- What people ask of backfills: where they are, and what they would write. Nothing here writes or locks a row.
--
-- Names in braces beside the usual ones: {source}, {alias}, {key}, {key_type}, {condition}, {payload}, {regions_of_row:n} and
-- {resumed:n} as in backfill.sql; {switches}: what is switched off; {shard_identifier} and {object_identifier}: what would be written; {targets}: one of the
-- two fragments of this name; {models}: the configured models, as rows of VALUES.

-- name: spent_lately
-- What was written in the last 60 seconds. Asks for no lock, as the budget does: it decides nothing.
-- $1 text[]        source tables
-- returns          table_name, messages; no row: nothing
SELECT table_name, sum(messages)::int8 AS messages
FROM {schema}.backfill_spending
WHERE table_name = ANY ($1::text[]) AND spent_at > clock_timestamp() - interval '60 seconds'
GROUP BY table_name

-- name: walked_now
-- Which tables some process walks now: those whose walk is locked.
-- $1 int4          lock class
-- $2 text[]        source tables
-- $3 text          schema of outboxd's own tables
-- returns          table_name
SELECT walk.table_name
FROM unnest($2::text[]) AS walk (table_name)
WHERE EXISTS (
    SELECT
    FROM pg_locks AS held
    WHERE held.locktype = 'advisory'
        AND held.granted
        AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND held.classid::int8 = $1::int4
        -- A key of 32 bits is shown without its sign.
        AND held.objid::int8 = (hashtext($3::text || '.' || walk.table_name)::int8 & 4294967295)
        AND held.objsubid = 2
)

-- name: place
-- The ends of a source table, its rows as last analysed (null: never), and how many lie on either side of a place. They are
-- counted only so far: near the ends the numbers are exact, and a large table costs no more than a small one.
-- $1 {key_type}    where the walk goes on; null: at the lowest key
-- $2 oid           the source table; of a partitioned one the partitions are summed up
-- $3 int8          rows to count at most
-- returns          lowest and highest key (null: no row), estimated_rows, rows below and from there on
-- index            primary key of the source table
SELECT
    (SELECT {key}::text FROM {source} AS {alias} ORDER BY {key} LIMIT 1) AS lowest,
    (SELECT {key}::text FROM {source} AS {alias} ORDER BY {key} DESC LIMIT 1) AS highest,
    (
        SELECT CASE WHEN bool_and(reltuples >= 0) THEN sum(reltuples)::int8 END
        FROM pg_class
        WHERE relkind = 'r' AND oid = ANY (ARRAY(SELECT $2::oid UNION SELECT relid FROM pg_partition_tree($2::oid)))
    ) AS estimated_rows,
    (
        SELECT count(*)
        FROM (SELECT FROM {source} AS {alias} WHERE NOT {resumed:1} ORDER BY {key} LIMIT $3::int8) AS few
    ) AS below,
    (
        SELECT count(*)
        FROM (SELECT FROM {source} AS {alias} WHERE {resumed:1} ORDER BY {key} LIMIT $3::int8) AS few
    ) AS above

-- name: targets
-- A fragment: the regions of a row's messages ($2), where every row has the same; one that is null where there are none.
unnest($2::text[]) AS outboxd_target (outboxd_region)

-- name: targets_by_row
-- A fragment: the same where each row names its own; $2 are those that are wanted, null: all.
LATERAL ({regions_of_row:2}) AS outboxd_target (outboxd_region)

-- name: count_left
-- What a walk would do from here to the end. Reads all of that: it may take minutes.
-- $1 {key_type}    where to begin; null: at the lowest key
-- $2 text[]        see targets
-- returns          rows that would be looked at, messages that would be written, rows that have no shard or no object,
--                  which the outbox would refuse
SELECT
    count(*) AS rows,
    coalesce(sum((SELECT count(*) FROM {targets})) FILTER (WHERE {condition}), 0)::int8 AS messages,
    count(*) FILTER (WHERE {condition} AND ({shard_identifier} IS NULL OR {object_identifier} IS NULL)) AS refused
FROM {source} AS {alias}
WHERE {resumed:1}

-- name: first_messages
-- $1 {key_type}    where to begin; null: at the lowest key
-- $2 text[]        see targets
-- $3 int4          messages at most
-- returns          message: what would be written, as JSON
-- index            primary key of the source table
SELECT jsonb_build_object(
    'region_name', outboxd_target.outboxd_region,
    'shard_identifier', {shard_identifier},
    'object_identifier', {object_identifier},
    'payload', {payload}
)::text AS message
FROM {source} AS {alias}
CROSS JOIN {targets}
WHERE {resumed:1} AND {condition}
ORDER BY {key}, outboxd_target.outboxd_region
LIMIT $3::int4

-- name: watermarks
-- Where the backfills are. low_bound: the lowest key that is not done (of uuid keys the last one that is); '0': the walk
-- has not begun. version above replication_version: finished. version_option below it: the walk waits. paused: by a pause,
-- or because its outbox or category is off. messages_last_minute: what was written in the last 60 seconds.
-- What is left, what is broken and whether live traffic comes first is known to `outboxd backfill status` only.
WITH off AS MATERIALIZED (
    SELECT kind, table_name, outbox, category
    FROM (
{switches}
    ) AS switched
    WHERE in_force
)
SELECT
    model.table_name,
    model.replication_version,
    gate.value AS version_option,
    coalesce(mark.version, 1) AS version,
    coalesce(mark.low_bound, '0') AS low_bound,
    mark.updated_at,
    coalesce(spent.messages, 0) AS messages_last_minute,
    EXISTS (
        SELECT
        FROM off
        WHERE off.kind = 'backfill' AND (off.table_name IS NULL OR off.table_name = model.table_name)
            OR off.kind = 'outbox' AND off.outbox = model.outbox
            OR off.kind = 'category' AND off.category = model.category
    ) AS paused
FROM (VALUES {models}) AS model (table_name, replication_version, outbox, category)
LEFT JOIN {schema}.backfill_watermark AS mark ON mark.table_name = model.table_name
LEFT JOIN {schema}.option AS gate
    ON gate.key = 'outbox_replication.' || model.table_name || '.replication_version'
    AND gate.updated_at <= now()
    AND (gate.expires_at IS NULL OR gate.expires_at > now())
LEFT JOIN LATERAL (
    SELECT sum(spending.messages) AS messages
    FROM {schema}.backfill_spending AS spending
    WHERE spending.table_name = model.table_name AND spending.spent_at > now() - interval '60 seconds'
) AS spent ON true
ORDER BY model.table_name
LIMIT {value:rows_max}
