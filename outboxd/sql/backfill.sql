-- Backfill: walk a source table along its primary key and write a message for each row.
--
-- Names in braces beside the usual ones: {source} and {alias} (the source table and its bare name), {key} (its primary
-- key, qualified), {key_type} (int8 for every integer); {shard_identifier}, {object_identifier}, {payload}, {condition},
-- {regions}: expressions of the configuration over the row; {regions_of_row:n}: the fragment below. Where they stand,
-- no name of ours may be one that a source table has too: hence outboxd_target and outboxd_region.
-- {outbox}, {rows_max}, {categories_off}, {scopes_off}, {identifiers_off}, {regions_off} and {looked_at_max} in what
-- measures the load: its parameters, in this order; for psql, values and where they are looked up.

-- name: watermark
-- $1 text          source table
-- returns          low_bound, version; no row: never seen
SELECT low_bound, version FROM {schema}.backfill_watermark WHERE table_name = $1::text

-- name: lock_watermark
-- Create the watermark of a table that was never seen, and lock it: whoever walks the same table waits here (I12).
-- $1 text          source table
-- $2 text          low bound of a walk that has not begun
-- $3 int4          the version it begins with
-- returns          low_bound, version
-- locks            the watermark's row, until commit
INSERT INTO {schema}.backfill_watermark AS w (table_name, low_bound, version)
VALUES ($1::text, $2::text, $3::int4)
ON CONFLICT (table_name) DO UPDATE SET updated_at = w.updated_at
RETURNING low_bound, version

-- name: move_watermark
-- $1 text          source table
-- $2 text          low bound
-- $3 int4          version
UPDATE {schema}.backfill_watermark
SET low_bound = $2::text, version = $3::int4, updated_at = now()
WHERE table_name = $1::text

-- name: try_lock_table
-- The lock of whoever walks a table; it goes with the session at the latest.
-- $1 int4          lock class
-- $2 text          source table, qualified by the schema of outboxd's own tables: installations are apart
-- returns          whether it was won
SELECT pg_try_advisory_lock($1::int4, hashtext($2::text)) AS won

-- name: unlock_table
-- $1 int4          lock class
-- $2 text          source table, qualified as above
-- returns          whether it was held
SELECT pg_advisory_unlock($1::int4, hashtext($2::text)) AS was_held

-- name: lock_spending
-- One batch at a time decides what it may spend, else two could spend the same allowance. Another's batch may take longer
-- than our patience with locked tables, which is set aside for this wait; `spent` brings it back.
-- $1 int4          lock class
-- $2 text          schema of outboxd's own tables
-- locks            an advisory lock, until commit
SELECT pg_advisory_xact_lock($1::int4, hashtext($2::text)) FROM set_config('lock_timeout', '0', true)

-- name: spent
-- What was written in the last 60 seconds. The clock, not the transaction's start: a batch that waited for its turn must
-- see what was spent meanwhile.
-- $1 text[]        source tables
-- returns          messages
SELECT coalesce(sum(messages), 0)::int8 AS messages
FROM {schema}.backfill_spending, set_config('lock_timeout', '5000', true)
WHERE table_name = ANY ($1::text[]) AND spent_at > clock_timestamp() - interval '60 seconds'

-- name: spend
-- $1 text          source table
-- $2 int4          messages
WITH old AS (
    DELETE FROM {schema}.backfill_spending
    WHERE table_name = $1::text AND spent_at < clock_timestamp() - interval '10 minutes'
)
INSERT INTO {schema}.backfill_spending (table_name, messages) VALUES ($1::text, $2::int4)

-- name: deliverable
-- A fragment: whether the row `due` could be delivered now: neither paused nor of a failing shard. In prepared mode a first
-- failure that says {died} is mostly a delivery under way: for a minute it does not count. Placeholders as in load.
due.category <> ALL ({categories_off}::int4[])
        -- NOT IN is hashed, whatever the planner thinks of the lists' length: a list may be long. No entry is null.
        AND (due.shard_scope, due.shard_identifier::text) NOT IN (
            SELECT off.shard_scope, off.shard_identifier
            FROM unnest({scopes_off}::int4[], {identifiers_off}::text[], {regions_off}::text[])
                AS off (shard_scope, shard_identifier, region_name)
            WHERE off.region_name IS NULL
        )
        AND (due.shard_scope, due.shard_identifier::text, {region_text:due}) NOT IN (
            SELECT off.shard_scope, off.shard_identifier, off.region_name
            FROM unnest({scopes_off}::int4[], {identifiers_off}::text[], {regions_off}::text[])
                AS off (shard_scope, shard_identifier, region_name)
            WHERE off.region_name IS NOT NULL
        )
        AND NOT EXISTS (
            SELECT
            FROM {schema}.failure AS known
            WHERE known.outbox = {outbox}::text
                AND known.shard_scope = due.shard_scope
                AND known.shard_identifier = due.shard_identifier::text
                AND known.region_name = {region_text:due}
                AND NOT (
                    known.last_error = {died}
                    AND known.attempts = 1
                    AND known.last_failed_at > now() - interval '1 minute'
                )
        )

-- name: load
-- How busy the drain is: due messages that it could deliver now, neither paused nor of a failing shard, and the age of
-- the oldest of them. Counts no more than the budget could be worth, and passes over so many that do not count.
-- A time before 1970 counts as 1970, and one ahead as now: what is infinite cannot be subtracted.
-- $1 text          outbox
-- $2 int8          rows counted at most
-- $3 int4[]        categories that are switched off
-- $4 int4[]        scope, ...
-- $5 text[]        ... identifier ...
-- $6 text[]        ... and region (null: any) of shards that are switched off
-- $7 int8          rows looked at at most
-- returns          scheduled (rows), lag_s (0 when there is none)
-- index            (scheduled_for, <sharding columns>); primary key of outboxd.failure
SELECT
    count(*) AS scheduled,
    extract(epoch FROM now() - least(now(), min(greatest(waiting.date_added, waiting.scheduled_for, 'epoch'))))::float8
        AS lag_s
FROM (
    SELECT due.date_added, due.scheduled_for
    FROM (
        SELECT o.date_added, o.scheduled_for, o.category, {shard:o}
        FROM {table} AS o
        WHERE o.scheduled_for <= now()
        ORDER BY o.scheduled_for, {shard:o}
        LIMIT {looked_at_max}::int8
    ) AS due
    WHERE {deliverable}
    LIMIT {rows_max}::int8
) AS waiting

-- name: lag_of_first
-- The age of the oldest message that could be delivered now, among the first ones of the table. In a backlog that is longer
-- than what load counts, the oldest is among these: load goes by shard there.
-- $1 text          outbox
-- $2 int8          rows looked at at most
-- $3 int4[]        categories that are switched off
-- $4 int4[]        scope, ...
-- $5 text[]        ... identifier ...
-- $6 text[]        ... and region (null: any) of shards that are switched off
-- returns          lag_s (0 when there is none)
-- index            primary key; primary key of outboxd.failure
SELECT
    extract(epoch FROM now() - least(now(), min(greatest(due.date_added, due.scheduled_for, 'epoch'))))::float8 AS lag_s
FROM (
    SELECT o.date_added, o.scheduled_for, o.category, {shard:o}
    FROM {table} AS o
    ORDER BY o.id
    LIMIT {rows_max}::int8
) AS due
WHERE due.scheduled_for <= now() AND {deliverable}

-- name: batch
-- Write the messages of the next rows in the order of the primary key. Gaps in it cost nothing.
-- The last key comes from an array because max() knows no uuid before PostgreSQL 18; in the order of the scan, so that
-- nothing is sorted.
-- $1 {key_type}    where to begin; null: at the lowest key
-- $2 int4          source rows at most
-- $3 int4          scope
-- $4 int4          category
-- $5 text[]        regions; one that is null where the outbox has none
-- returns          source rows looked at and done (the same number), the last one's key, messages written
-- index            primary key of the source table
WITH bound AS MATERIALIZED (
    SELECT count(*) AS seen, (array_agg(batch.key ORDER BY batch.key))[count(*)] AS last_key
    FROM (
        SELECT {key} AS key
        FROM {source} AS {alias}
        WHERE {resumed:1}
        ORDER BY {key}
        LIMIT $2::int4
    ) AS batch
),
written AS (
    INSERT INTO {table} ({columns})
    SELECT {values}
    FROM {source} AS {alias}
    CROSS JOIN unnest($5::text[]) AS outboxd_target (outboxd_region)
    WHERE {resumed:1}
        AND {key} <= (SELECT last_key FROM bound)
        AND {condition}
    RETURNING 1
)
SELECT seen AS looked, seen AS done, last_key::text, (SELECT count(*) FROM written) AS messages FROM bound

-- name: regions_of_row
-- A fragment: the regions that a row names, each once; of those that are wanted ({wanted}; null: all).
SELECT DISTINCT named.region_name
FROM unnest({regions}) AS named (region_name)
WHERE named.region_name IS NOT NULL AND ({wanted} IS NULL OR named.region_name = ANY ({wanted}))

-- name: batch_by_row
-- As `batch`, where each row names its regions: as many rows as have no more than the given number of messages in all.
-- $1 {key_type}    where to begin; null: at the lowest key
-- $2 int4          source rows at most
-- $3 int4          scope
-- $4 int4          category
-- $5 text[]        regions that are wanted; null: all
-- $6 int8          messages at most
-- returns          source rows looked at and done, the last one's key, messages written; of 0 rows done the number of
--                  messages that the first one makes: it alone is too many
-- index            primary key of the source table
WITH sized AS MATERIALIZED (
    SELECT batch.key, sum(batch.messages) OVER (ORDER BY batch.key) AS total
    FROM (
        SELECT
            {key} AS key,
            CASE WHEN {condition} THEN cardinality(ARRAY({regions_of_row:5})) ELSE 0 END AS messages
        FROM {source} AS {alias}
        WHERE {resumed:1}
        ORDER BY {key}
        LIMIT $2::int4
    ) AS batch
),
bound AS MATERIALIZED (
    SELECT count(*) AS seen, (array_agg(sized.key ORDER BY sized.key))[count(*)] AS last_key
    FROM sized
    WHERE sized.total <= $6::int8
),
written AS (
    INSERT INTO {table} ({columns})
    SELECT {values}
    FROM {source} AS {alias}
    CROSS JOIN LATERAL ({regions_of_row:5}) AS outboxd_target (outboxd_region)
    WHERE {resumed:1}
        AND {key} <= (SELECT last_key FROM bound)
        AND {condition}
    RETURNING 1
)
SELECT
    (SELECT count(*) FROM sized) AS looked,
    seen AS done,
    last_key::text,
    CASE WHEN seen = 0 THEN coalesce((SELECT min(total) FROM sized), 0) ELSE (SELECT count(*) FROM written) END::int8
        AS messages
FROM bound
