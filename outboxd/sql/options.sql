-- Kill switches. Small tables, read whole.
--
-- What was lifted for a while counts again from updated_at or created_at on, which then lie ahead.

-- name: options
-- returns          key, value of the options that count now
SELECT key, value FROM {schema}.option WHERE updated_at <= now() AND (expires_at IS NULL OR expires_at > now())

-- name: pauses
-- returns          id, kind, outbox, category, shard_scope, shard_identifier, region_name, table_name, author, reason,
--                  expires_at (in UTC) of the pauses that count now, oldest first
SELECT
    id, kind, outbox, category, shard_scope, shard_identifier, region_name, table_name, author, reason,
    expires_at
FROM {schema}.pause
WHERE created_at <= now() AND (expires_at IS NULL OR expires_at > now())
ORDER BY id
