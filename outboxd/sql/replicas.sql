-- Rows of source tables, for model receivers.
--
-- Names in braces: {source} and {alias} (the table and its bare name), {object} (its object identifier, qualified), {type}
-- (the type of object identifiers in the outbox), {condition} (the model's where_sql).

-- name: many
-- The rows of many objects; of large ones only that they are there, so that memory is bounded (I10).
-- $1 …[]           object identifiers, in the outbox's type
-- returns          the object (in the outbox's type), whether it is large, both again or null, then the table's columns
-- index            the unique one on the object identifier
SELECT found.outboxd_object, found.outboxd_is_large, kept.*
FROM (
    SELECT {object}::{type} AS outboxd_object, pg_column_size({alias}.*) > 8192 AS outboxd_is_large, {alias}.*
    FROM {source} AS {alias}
    WHERE {object} = ANY ($1::{type}[]) AND {condition}
) AS found
LEFT JOIN LATERAL (SELECT found.*) AS kept ON NOT found.outboxd_is_large

-- name: one
-- The row of one object, however large.
-- $1 …[]           its identifier
-- returns          as above
SELECT {object}::{type} AS outboxd_object, false AS outboxd_is_large, NULL AS again, NULL AS once_more, {alias}.*
FROM {source} AS {alias}
WHERE {object} = ANY ($1::{type}[]) AND {condition}

-- name: record_gone
-- Record objects that are gone, once.
-- $1 text          source table, as it is configured
-- $2 text[]        object identifiers
INSERT INTO {schema}.tombstone (table_name, object_identifier)
SELECT $1::text, gone.identifier FROM unnest($2::text[]) AS gone (identifier)
ON CONFLICT DO NOTHING
