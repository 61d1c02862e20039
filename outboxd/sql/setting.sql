-- Options as people see and change them. A small table, read whole.
--
-- A statement that a command prints as well (`--sql`) has `{value:...}` instead of parameters; see query.py.

-- name: options
-- Every option that is set, and with {join} = FULL those that could be; {only} may pick one.
-- returns          key, value (null: not set), state, problem (null: none), who, why, and when
WITH known (key, expected, is_list, names, takes_numbers) AS (VALUES {known})
SELECT
    coalesce(o.key, k.key) AS key,
    o.value,
    CASE
        WHEN o.key IS NULL THEN 'not set'
        WHEN o.expires_at <= now() THEN 'expired'
        WHEN o.updated_at > now() THEN 'lifted'
        ELSE 'in force'
    END AS state,
    CASE
        WHEN o.key IS NULL THEN NULL
        WHEN k.key IS NULL THEN 'unknown key'
        WHEN NOT CASE
            WHEN NOT k.is_list THEN jsonb_typeof(o.value) = 'number' AND o.value::text ~ '^[0-9]+$'
            WHEN jsonb_typeof(o.value) = 'array' THEN NOT EXISTS (
                SELECT FROM jsonb_array_elements(CASE jsonb_typeof(o.value) WHEN 'array' THEN o.value ELSE '[]' END)
                    AS list (item)
                WHERE CASE jsonb_typeof(list.item)
                    WHEN 'string' THEN list.item #>> '{}' <> ALL (k.names)
                    WHEN 'number' THEN NOT k.takes_numbers OR (list.item #>> '{}')::numeric % 1 <> 0
                    ELSE true
                END
            )
            ELSE false
        END THEN 'expected ' || k.expected
    END AS problem,
    o.updated_by,
    o.updated_at,
    o.reason,
    o.expires_at
FROM known AS k
{join} JOIN {schema}.option AS o ON o.key = k.key
{only}ORDER BY 1
LIMIT {value:rows_max}

-- name: only
-- What {only} is for one option.
WHERE coalesce(o.key, k.key) = {value:key}

-- name: set_option
-- $1 text          key
-- $2 text          value, JSON
-- $3 text          who
-- $4 text          why, or null
-- $5 interval      for how long, or null
-- locks            the row, for a moment
-- index            primary key
INSERT INTO {schema}.option (key, value, updated_by, reason, expires_at)
VALUES ($1::text, $2::text::jsonb, $3::text, $4::text, now() + $5::interval)
ON CONFLICT (key) DO UPDATE SET
    value = excluded.value, updated_by = excluded.updated_by, reason = excluded.reason,
    expires_at = excluded.expires_at, updated_at = now()

-- name: unset_option
-- $1 text          key
-- returns          whether there was one
-- locks            the row, for a moment
-- index            primary key
DELETE FROM {schema}.option WHERE key = $1::text RETURNING true AS found

-- name: lift_option
-- Unset it for a while: it counts again when that is over.
-- $1 text          key
-- $2 interval      for how long
-- returns          whether it will: else it ends before that by itself; no row where there was none
-- locks            the row, for a moment
-- index            primary key
UPDATE {schema}.option SET updated_at = now() + $2::interval
WHERE key = $1::text
RETURNING coalesce(expires_at > updated_at, true) AS comes_back
