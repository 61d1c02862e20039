-- What an operator asks about waiting messages. These become `query.Query` objects: the same text runs here and in
-- psql, with `value` placeholders as bound parameters or as literals; all others are names or further statements of this
-- file. What stands above a statement is not part of it. Every number in psql's text has a name in its comments.
--
-- No table is ever read whole unless it is small: see `seen`. A shard's own messages are found by the index that drains
-- use, and counted up to a bound. The first sharding column is `= ANY` of one value for the reason at the head of
-- drain.sql.

-- name: seen
-- The messages that a question about a whole table looks at: a list of CTEs, the last of them `seen`.
--   all      the table has few pages: every message
--   newest   it has many, but few messages (the rest is free or dead): every message, by the primary key
--   sample   else: the messages in a random but fixed choice of pages; what is counted there, times `scale`, is an estimate
-- Where the server knows of very many dead rows the primary key is not walked: it would lead through all of them.
-- pages            pages to read at most, about
-- rows             messages to read by the primary key at most
-- dead             dead rows to walk through at most
-- index            primary key, backwards
size AS MATERIALIZED (
    SELECT
        pg_relation_size({relation}) / current_setting('block_size')::int8 AS pages,
        pg_stat_get_dead_tuples({relation}) AS dead
),
newest AS MATERIALIZED (
    SELECT {shard}, category, scheduled_for, date_added
    FROM {table}
    WHERE (SELECT pages > {value:pages} AND dead <= {value:dead} FROM size)
    ORDER BY id DESC
    LIMIT {value:rows}
),
way AS MATERIALIZED (
    SELECT
        CASE
            WHEN pages <= {value:pages} THEN 'all'
            WHEN dead <= {value:dead} AND (SELECT count(*) FROM newest) < {value:rows} THEN 'newest'
            ELSE 'sample'
        END AS taken,
        greatest(1.0, pages::float8 / {value:pages}) AS page_scale
    FROM size
),
seen AS (
    SELECT * FROM newest WHERE (SELECT taken = 'newest' FROM way)
    UNION ALL
    SELECT {shard}, category, scheduled_for, date_added
    FROM {table}
        TABLESAMPLE SYSTEM (
            least(
                100,
                100.0 * {value:pages}
                / greatest(1, pg_relation_size({relation}) / current_setting('block_size')::int8)
            )
        ) REPEATABLE (1)
    WHERE (SELECT taken <> 'newest' FROM way)
),
scaled AS MATERIALIZED (
    SELECT taken = 'sample' AS is_estimate, CASE taken WHEN 'sample' THEN page_scale ELSE 1 END AS scale FROM way
)

-- name: off
-- What is switched off for an outbox now, by pauses and by options, of its shards only those in `listed`: a CTE.
off AS MATERIALIZED (
    SELECT
        kind,
        shard_scope,
        {canonical:switched} AS canonical,
        region_name,
        category,
        CASE
            WHEN id IS NULL THEN concat('off by option ', option, ', set by ' || author, ': ' || reason)
            ELSE concat('paused', ' by ' || author, ': ' || reason)
        END AS because,
        expires_at AS until
    FROM (
{switches}
    ) AS switched
    WHERE in_force AND CASE kind
            WHEN 'outbox' THEN outbox = {outbox}
            WHEN 'shard' THEN (shard_scope, {canonical:switched}) IN (SELECT shard_scope, canonical FROM listed)
            ELSE kind = 'category'
        END
)

-- name: paused
-- What of `off` holds a shard s, or its `categories`: of what holds all of it, what ends last; a fragment.
SELECT
    off.kind <> 'category' OR s.categories <@ ARRAY(SELECT category FROM off WHERE kind = 'category') AS is_whole,
    concat_ws(' ', off.kind, {category_name:off}, off.because) AS because,
    off.until
FROM off
WHERE CASE off.kind
        WHEN 'shard' THEN
            off.shard_scope = s.shard_scope
            AND off.canonical = s.canonical
            AND (off.region_name IS NULL OR off.region_name = {region_text:s})
        WHEN 'category' THEN off.category = ANY (s.categories)
        ELSE true
    END
ORDER BY off.kind = 'category', off.until DESC NULLS FIRST, off.because
LIMIT 1

-- name: shards
-- The deepest shards of an outbox. A first failure that says {died} is, for a minute, taken for what it mostly is: a
-- delivery under way, counted ahead (prepared mode).
-- limit            shards at most
-- counted          where only a sample was seen: messages of one shard to count at most
-- index            (<sharding columns>, id); primary key; primary key of outboxd.failure
WITH {seen},
found AS MATERIALIZED (
    SELECT
        {shard},
        count(*) AS depth,
        count(*) FILTER (WHERE scheduled_for <= now()) AS due,
        min(date_added) AS oldest,
        max(date_added) AS newest,
        min(scheduled_for) AS next_due,
        array_agg(DISTINCT category::int4) AS categories
    FROM seen
    WHERE {in_region}
    GROUP BY {shard}
    ORDER BY count(*) DESC, {shard}
    LIMIT {value:limit}
),
listed AS MATERIALIZED (
    SELECT {shard:found}, {canonical:found} AS canonical, known.*
    FROM found
    CROSS JOIN scaled
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS depth,
            count(*) FILTER (WHERE scheduled_for <= now()) AS due,
            min(date_added) AS oldest,
            max(date_added) AS newest,
            min(scheduled_for) AS next_due,
            array_agg(DISTINCT category::int4) AS categories
        FROM (
            SELECT o.category, o.scheduled_for, o.date_added
            FROM {table} AS o
            WHERE scaled.is_estimate AND {same_shard:found}
            ORDER BY {shard:o}, o.id
            LIMIT {value:counted}
        ) AS head
    ) AS counted
    CROSS JOIN LATERAL (
        SELECT counted.*, false AS is_estimate WHERE scaled.is_estimate AND counted.depth < {value:counted}
        UNION ALL
        SELECT
            greatest(counted.depth, round(found.depth * scaled.scale)::int8),
            round(found.due * scaled.scale)::int8,
            least(counted.oldest, found.oldest),
            greatest(counted.newest, found.newest),
            least(counted.next_due, found.next_due),
            found.categories,
            scaled.is_estimate
        WHERE NOT (scaled.is_estimate AND counted.depth < {value:counted})
    ) AS known
),
{off}
SELECT
    {outbox}::text AS outbox,
    {region:s}::text AS region_name,
    s.shard_scope,
    {scope_name:s} AS scope_name,
    to_jsonb(s.shard_identifier) AS shard_identifier,
    s.depth,
    s.is_estimate,
    s.due,
    s.oldest,
    s.newest,
    CASE
        WHEN paused.is_whole THEN 'paused'
        WHEN failed.next_at > now() AND (failed.blocks OR s.due = 0) THEN 'in backoff'
        WHEN s.due > 0 THEN 'due'
        ELSE 'not due'
    END AS state,
    CASE
        WHEN paused.is_whole THEN paused.until
        WHEN failed.next_at > now() AND (failed.blocks OR s.due = 0) THEN failed.next_at
        WHEN s.due = 0 THEN s.next_due
    END AS until,
    nullif(concat_ws('; ', paused.because, failed.because), '') AS because
FROM listed AS s
LEFT JOIN LATERAL (
{paused}
) AS paused ON true
LEFT JOIN LATERAL (
    SELECT
        head.scheduled_for AS next_at,
        f.category <> ALL ({skipping}) AS blocks,
        concat('attempt ', f.attempts, ' failed: ', f.last_error) AS because
    FROM {schema}.failure AS f
    LEFT JOIN LATERAL (
        SELECT o.scheduled_for
        FROM {table} AS o
        WHERE o.id >= f.message_id AND o.id <= f.message_id
        ORDER BY o.id
        LIMIT 1
    ) AS head ON true
    WHERE f.outbox = {outbox}
        AND f.shard_scope = s.shard_scope
        AND f.shard_identifier = s.shard_identifier::text
        AND f.region_name = {region_text:s}
        AND NOT (f.last_error = {died} AND f.attempts = 1 AND f.last_failed_at > now() - interval '1 minute')
    ORDER BY blocks DESC, f.attempts DESC, f.message_id
    LIMIT 1
) AS failed ON true

-- name: stuck
-- The shards of an outbox that are in backoff, the one that has failed longest first; without deliveries under way, as in
-- `shards`.
-- limit            shards at most
-- counted          messages of one shard to count at most
-- failures         failing objects to look at, at most, in the order of their index: a million take a second
-- index            primary key; (<sharding columns>, id); primary key of outboxd.failure
WITH listed AS MATERIALIZED (
    SELECT failing.*, {canonical:failing} AS canonical, ARRAY[failing.category::int4] AS categories
    FROM (
        SELECT DISTINCT ON (shard_scope, shard_identifier, region_name)
            failure.*,
            count(*) OVER of_shard AS objects,
            min(first_failed_at) OVER of_shard AS since
        FROM (
            SELECT known.*
            FROM {schema}.failure AS known
            WHERE known.outbox = {outbox}
            ORDER BY known.outbox, known.shard_scope, known.shard_identifier, known.region_name
            LIMIT {value:failures}
        ) AS failure
        WHERE {in_region}
            AND NOT (last_error = {died} AND attempts = 1 AND last_failed_at > now() - interval '1 minute')
        WINDOW of_shard AS (PARTITION BY shard_scope, shard_identifier, region_name)
        ORDER BY shard_scope, shard_identifier, region_name, attempts DESC, message_id
    ) AS failing
    ORDER BY since, shard_scope, shard_identifier, region_name
    LIMIT {value:limit}
),
{off}
SELECT
    {outbox}::text AS outbox,
    nullif(s.region_name, '') AS region_name,
    s.shard_scope,
    {scope_name:s} AS scope_name,
    coalesce(to_jsonb(head.shard_identifier), to_jsonb(s.shard_identifier)) AS shard_identifier,
    s.category,
    {category_name:s} AS category_name,
    coalesce(to_jsonb(head.object_identifier), to_jsonb(s.object_identifier)) AS object_identifier,
    s.objects AS failing_objects,
    own.depth,
    own.depth >= {value:counted} AS is_at_least,
    head.scheduled_for AS next_attempt,
    own.oldest,
    last_row.date_added AS newest,
    s.attempts,
    s.since AS first_failed_at,
    s.last_error,
    paused.because AS paused,
    paused.until AS paused_until,
    EXISTS (
        SELECT
        FROM {schema}.failure AS known
        WHERE known.outbox = {outbox}
        ORDER BY known.outbox, known.shard_scope, known.shard_identifier, known.region_name
        OFFSET {value:failures}
        LIMIT 1
    ) AS is_partial
FROM listed AS s
LEFT JOIN LATERAL (
    SELECT o.*
    FROM {table} AS o
    WHERE o.id >= s.message_id AND o.id <= s.message_id
    ORDER BY o.id
    LIMIT 1
) AS head ON head.shard_scope = s.shard_scope AND head.shard_identifier::text = s.shard_identifier
LEFT JOIN LATERAL (
    SELECT count(*) AS depth, min(first_rows.date_added) AS oldest
    FROM (
        SELECT o.date_added
        FROM {table} AS o
        WHERE {same_shard:head}
        ORDER BY {shard:o}, o.id
        LIMIT {value:counted}
    ) AS first_rows
) AS own ON head.id IS NOT NULL
LEFT JOIN LATERAL (
    SELECT o.date_added
    FROM {table} AS o
    WHERE {same_shard:head}
    ORDER BY {shard_backwards:o}, o.id DESC
    LIMIT 1
) AS last_row ON true
LEFT JOIN LATERAL (
{paused}
) AS paused ON paused.is_whole

-- name: messages
-- Messages, the newest first: of those that an index leads to, backwards, the ones that fit. `headers` is the table's own
-- column where it has one, else that of `absent`: the text must do for both, because who prints it may not look.
-- limit            messages at most
-- rows             messages to look at, for what no index knows: categories and objects
-- led              conditions on o that the index knows
-- fits             conditions on o that it does not
-- index            primary key, backwards, or (<sharding columns>, id), backwards; primary key of outboxd.failure
SELECT message.*, f.attempts, f.last_error
FROM (SELECT NULL::jsonb AS headers) AS absent
CROSS JOIN LATERAL (
    SELECT
        {message_columns}
    FROM (SELECT * FROM {table} AS o WHERE {led} ORDER BY {backwards} o.id DESC LIMIT {value:rows}) AS o
    WHERE {fits}
    ORDER BY o.id DESC
    LIMIT {value:limit}
) AS message
{failure_of_message}
ORDER BY message.id DESC

-- name: backwards
-- What the messages of one shard are ordered by, beside the id.
{shard_backwards:o},

-- name: message_columns
-- What is shown of a message `o`. A payload is left out when it is large, stored or unpacked.
o.id,
        {outbox}::text AS outbox,
        {region:o}::text AS region_name,
        o.shard_scope,
        {scope_name:o} AS scope_name,
        o.shard_identifier,
        o.category,
        {category_name:o} AS category_name,
        o.object_identifier,
        o.date_added,
        o.scheduled_for,
        o.scheduled_for <= now() AS is_due,
        pg_column_size(o.payload) AS payload_size,
        CASE
            WHEN pg_column_size(o.payload) <= {value:payload} AND octet_length(o.payload::text) <= 8 * {value:payload}
            THEN o.payload
        END AS payload,
        CASE WHEN pg_column_size(headers) <= {value:payload} THEN headers END AS headers

-- name: failure_of_message
-- What is known of earlier failures of a message's object.
LEFT JOIN {schema}.failure AS f
    ON f.outbox = message.outbox
    AND f.shard_scope = message.shard_scope
    AND f.shard_identifier = message.shard_identifier::text
    AND f.region_name = coalesce(message.region_name, '')
    AND f.category = message.category
    AND f.object_identifier = message.object_identifier::text

-- name: depth
-- How many messages of a category wait in an outbox. One row.
-- category         its number
WITH {seen}
SELECT
    {outbox}::text AS outbox,
    own.category,
    {category_name:own} AS category_name,
    round(own.depth * scaled.scale)::int8 AS depth,
    scaled.is_estimate,
    round(own.due * scaled.scale)::int8 AS due,
    own.oldest,
    own.newest
FROM scaled
CROSS JOIN (
    SELECT
        {value:category}::int4 AS category,
        count(*) AS depth,
        count(*) FILTER (WHERE scheduled_for <= now()) AS due,
        min(date_added) AS oldest,
        max(date_added) AS newest
    FROM seen
    WHERE category = {value:category} AND {in_region}
) AS own
LIMIT 1

-- name: total
-- How many messages are in an outbox. One row.
WITH {seen}
SELECT
    round((SELECT count(*) FROM seen) * scaled.scale)::int8 AS messages,
    scaled.is_estimate
FROM scaled

-- name: clock
-- The time that schedules are compared with.
SELECT now() AS now
