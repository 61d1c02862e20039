-- Statements of the test helpers for Django; on its connection, in a TestCase in the test's own transaction.

-- name: due
-- The messages that are due; a test has few.
-- returns          id, category, object_identifier, payload and headers as JSON text, scheduled_for and date_added in
--                  seconds since 1970, the sharding columns; by id
SELECT
    o.id,
    o.category,
    o.object_identifier,
    o.payload::text AS payload,
    {headers_text} AS headers,
    extract(epoch FROM o.scheduled_for)::float8 AS scheduled_for,
    extract(epoch FROM o.date_added)::float8 AS date_added,
    {shard:o}
FROM {table} AS o
WHERE o.scheduled_for <= now()
ORDER BY o.id

-- name: retire
-- Delete what was delivered.
-- $1 int8[]        ids
-- returns          id of each
-- locks            these rows
-- index            primary key
DELETE FROM {table} AS o WHERE o.id = ANY ($1::int8[]) RETURNING o.id

-- name: that_exist
-- Which of these tables are there: a test may have dropped one, or have named a configuration without it.
-- $1 text[]        quoted names
-- returns          name
SELECT name FROM unnest($1::text[]) AS given (name) WHERE to_regclass(name) IS NOT NULL

-- name: empty
-- Everything that earlier tests have left; what `migrate` has written stays.
-- locks            the tables: nobody else is there
TRUNCATE {tables}
