-- Kill switches. Small tables, read whole.

-- name: options
-- returns          key, value of the options that have not expired
SELECT key, value FROM {schema}.option WHERE expires_at IS NULL OR expires_at > now()

-- name: pauses
-- returns          kind, outbox, category, shard_scope, shard_identifier, region_name, table_name of the pauses that have
--                  not expired
SELECT kind, outbox, category, shard_scope, shard_identifier, region_name, table_name
FROM {schema}.pause
WHERE expires_at IS NULL OR expires_at > now()
