-- Writing one message by hand.

-- name: enqueue
-- Write a message; the table's defaults make it due at once.
-- $1 int4          category
-- $2               object identifier, in the column's type
-- $3 jsonb         payload, may be null
-- $4 …             sharding columns, in their types
-- returns          id; one row
-- locks            what an INSERT takes
INSERT INTO {table} (category, object_identifier, payload, {shard})
VALUES ($1::int4, $2::{object_type}, $3::jsonb, {shard_values:4})
RETURNING id

-- name: enqueue_with_headers
-- As above, for a table with the column headers.
-- $1 int4          category
-- $2               object identifier, in the column's type
-- $3 jsonb         payload, may be null
-- $4 jsonb         headers, may be null
-- $5 …             sharding columns, in their types
-- returns          id; one row
-- locks            what an INSERT takes
INSERT INTO {table} (category, object_identifier, payload, headers, {shard})
VALUES ($1::int4, $2::{object_type}, $3::jsonb, $4::jsonb, {shard_values:5})
RETURNING id
