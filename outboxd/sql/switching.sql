-- What is switched off, and pauses as people write and end them. Small tables, read whole.
--
-- A statement that a command prints as well (`--sql`) has `{value:...}` instead of parameters; see query.py.

-- name: switched_off
-- Every pause and every entry of an option that has not expired: those in force, and those that were lifted for a while.
-- The one statement that says so; other questions select from it.
-- returns          id (null: an option's), kind, what, the columns of the pause, option, who, why, since, until, in_force
WITH known (key, kind, shard_scope, names, numbers) AS (VALUES {known}),
scopes (number, name) AS (VALUES {scopes}),
categories (number, name) AS (VALUES {categories}),
entry AS (
    SELECT o.*, k.kind, k.shard_scope, k.numbers[array_position(k.names, item.text)] AS number, item.text
    FROM {schema}.option AS o
    JOIN known AS k ON k.key = o.key
    CROSS JOIN LATERAL jsonb_array_elements(CASE jsonb_typeof(o.value) WHEN 'array' THEN o.value ELSE '[]' END)
        AS list (entry)
    CROSS JOIN LATERAL (
        SELECT CASE jsonb_typeof(list.entry)
            WHEN 'string' THEN list.entry #>> '{}'
            WHEN 'number' THEN trim_scale((list.entry #>> '{}')::numeric)::text
        END AS text
    ) AS item
    WHERE CASE WHEN k.kind = 'shard' THEN item.text IS NOT NULL ELSE item.text = ANY (k.names) END
),
off AS (
    SELECT
        id, kind, shard_scope, shard_identifier, region_name, category, outbox, table_name, NULL AS option, author,
        reason, created_at AS since, expires_at
    FROM {schema}.pause
    UNION ALL
    SELECT DISTINCT
        NULL::bigint, kind, shard_scope, CASE kind WHEN 'shard' THEN text END, NULL, number,
        CASE kind WHEN 'outbox' THEN text END, NULL, key, updated_by, reason, updated_at, expires_at
    FROM entry
)
SELECT
    off.id,
    off.kind,
    CASE off.kind
        WHEN 'shard' THEN concat_ws(
            ' ', coalesce(scopes.name, off.shard_scope::text), off.shard_identifier, 'in ' || off.region_name
        )
        WHEN 'category' THEN coalesce(categories.name, off.category::text)
        WHEN 'outbox' THEN off.outbox
        ELSE coalesce(off.table_name, 'every table')
    END AS what,
    off.shard_scope,
    off.shard_identifier,
    off.region_name,
    off.category,
    off.outbox,
    off.table_name,
    off.option,
    off.author,
    off.reason,
    off.since,
    off.expires_at,
    off.since <= now() AS in_force
FROM off
LEFT JOIN scopes ON scopes.number = off.shard_scope
LEFT JOIN categories ON categories.number = off.category
WHERE off.expires_at IS NULL OR off.expires_at > now()

-- name: switched_off_list
-- The same, the oldest first.
SELECT *
FROM (
{switches}
) AS switched
ORDER BY since, id, what
LIMIT {value:rows_max}

-- name: pauses
-- The same, of some pauses.
-- ids              of each
-- index            primary key
SELECT *
FROM (
{switches}
) AS switched
WHERE id = ANY ({value:ids})
ORDER BY id

-- name: add_pause
-- $1 text, $2 int4, $3 text, $4 text, $5 int4, $6 text, $7 text    kind, shard_scope, shard_identifier, region_name,
--                                                                category, outbox, table_name
-- $8 text          who
-- $9 text          why, or null
-- $10 interval     for how long, or null
-- returns          its id
INSERT INTO {schema}.pause
    (kind, shard_scope, shard_identifier, region_name, category, outbox, table_name, author, reason, expires_at)
VALUES
    ($1::text, $2::int4, $3::text, $4::text, $5::int4, $6::text, $7::text, $8::text, $9::text, now() + $10::interval)
RETURNING id

-- name: end_pauses
-- $1 int8[]        ids
-- returns          the ids that were there
-- locks            these rows, for a moment
-- index            primary key
DELETE FROM {schema}.pause WHERE id = ANY ($1::int8[]) RETURNING id

-- name: lift_pauses
-- Resume for a while: they count again when that is over.
-- $1 int8[]        ids
-- $2 interval      for how long
-- returns          the ids that were there
-- locks            these rows, for a moment
-- index            primary key
UPDATE {schema}.pause SET created_at = now() + $2::interval WHERE id = ANY ($1::int8[]) RETURNING id
