-- What the pages of Django's admin ask beside the commands, around their questions: see diagnosis.sql.

-- name: message
-- One message; payload and headers as texts: to read them as JSON would cost digits, or fail where they are nested deeply.
-- messages         the question for it
SELECT
    id,
    outbox,
    region_name,
    shard_scope,
    scope_name,
    shard_identifier,
    category,
    category_name,
    object_identifier,
    date_added,
    scheduled_for,
    is_due,
    payload_size,
    payload::text AS payload,
    headers::text AS headers,
    attempts,
    last_error
FROM (
{messages}
) AS message

-- name: unsearched
-- The newest message that a list has not looked at, because it may read no more. Conditions as in `messages`.
-- rows             messages that it has looked at
-- led              conditions on o that the index knows
-- index            primary key, backwards, or (<sharding columns>, id), backwards
SELECT o.id FROM {table} AS o WHERE {led} ORDER BY {backwards} o.id DESC OFFSET {value:rows} LIMIT 1
