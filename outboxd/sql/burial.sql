-- Burying messages by hand. `bury` and `clear_failures` are those of the drain (drain.sql).

-- name: messages_to_bury
-- Where messages are, and what is known of the failures of their objects.
-- $1 text          outbox
-- $2 int8[]        ids
-- returns          id, category, object_identifier (text), lock_key, and of a failure attempts and message_id (else null),
--                  then the shard
-- index            primary key; primary key of outboxd.failure
SELECT
    o.id,
    o.category,
    o.object_identifier::text AS object_identifier,
    {lock_key:o} AS lock_key,
    f.attempts,
    f.message_id,
    {shard:o}
FROM {table} AS o
LEFT JOIN {schema}.failure AS f
    ON f.outbox = $1::text
    AND f.shard_scope = o.shard_scope
    AND f.shard_identifier = o.shard_identifier::text
    AND f.region_name = {region_text:o}
    AND f.category = o.category
    AND f.object_identifier = o.object_identifier::text
WHERE o.id = ANY ($2::int8[])
ORDER BY o.id

-- name: try_lock
-- Win shards as a daemon does, but until the end of the transaction: never beside a delivery (I3).
-- $1 int4          lock class
-- $2 int4[]        lock keys
-- returns          the keys that somebody else holds
-- locks            transaction-level advisory locks
SELECT wanted.lock_key
FROM unnest($2::int4[]) AS wanted (lock_key)
WHERE NOT pg_try_advisory_xact_lock($1::int4, wanted.lock_key)

-- name: letters_of
-- What this transaction has buried.
-- $1 text          outbox
-- $2 int8[]        ids of the messages
-- returns          message_id, id of the dead letter
-- index            (outbox, buried_at) of outboxd.dead_letter
SELECT d.message_id, d.id
FROM {schema}.dead_letter AS d
WHERE d.outbox = $1::text AND d.buried_at = now() AND d.message_id = ANY ($2::int8[])
