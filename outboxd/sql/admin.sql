-- What the pages of Django's admin ask beside the commands, around their questions: see diagnosis.sql.

-- name: unsearched
-- The newest message that a list has not looked at, because it may read no more. Conditions as in `messages`.
-- rows             messages that it has looked at
-- led              conditions on o that the index knows
-- index            primary key, backwards, or (<sharding columns>, id), backwards
SELECT o.id FROM {table} AS o WHERE {led} ORDER BY {backwards} o.id DESC OFFSET {value:rows} LIMIT 1
