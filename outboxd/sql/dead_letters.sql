-- Dead letters: looked at, put back, deleted. Every statement moves a bounded number of rows, whole: a message is
-- never both in its outbox and among the dead letters, and never in neither.
--
-- {conditions}, {columns} and {outboxes} are made of the fragments at the end, in which d is the dead letter;
-- {canonical:d} is its shard_identifier as kill switches are compared.

-- name: list
-- returns          dead letters without their content, the newest first
-- index            primary key, backwards
SELECT
    {columns}
FROM {schema}.dead_letter AS d
WHERE {conditions}
ORDER BY d.id DESC
LIMIT {value:limit}

-- name: show
-- returns          one dead letter, whole
-- index            primary key
SELECT
    {columns},
    d.scheduled_from,
    d.scheduled_for,
    d.payload,
    d.headers
FROM {schema}.dead_letter AS d
WHERE {conditions}
LIMIT 1

-- name: count
-- Count dead letters, each outbox up to a limit: jumps from one outbox to the next, so the cost is bounded.
-- returns          outbox, letters, newest_id (of all dead letters)
-- index            (outbox, buried_at)
WITH RECURSIVE known AS ({outboxes})
SELECT known.outbox, counted.letters, (SELECT max(id) FROM {schema}.dead_letter) AS newest_id
FROM known
CROSS JOIN LATERAL (
    SELECT count(*) AS letters
    FROM (
        SELECT
        FROM {schema}.dead_letter AS d
        WHERE d.outbox = known.outbox AND {conditions}
        LIMIT {value:limit}
    ) AS matching
) AS counted
WHERE counted.letters > 0
ORDER BY known.outbox

-- name: revive
-- Put dead letters back into their outbox, with the id that they had, due now. One whose id is taken there stays, and so
-- does one with headers where the table has no such column.
-- returns          looked_at, last_id, moved; looked_at is 0 at the end
-- locks            the dead letters that are looked at, until commit: who else moves them waits, and finds them gone
-- index            primary key of outboxd.dead_letter; primary key of the outbox
WITH chosen AS MATERIALIZED (
    SELECT d.*
    FROM {schema}.dead_letter AS d
    WHERE {conditions} AND d.outbox = {value:of} AND d.id > {value:after} AND d.id <= {value:until}
    ORDER BY d.id
    LIMIT {value:rows_max}
    FOR UPDATE
),
weighed AS (
    SELECT chosen.*, sum(coalesce(pg_column_size(payload), 0)) OVER (ORDER BY id) AS bytes_up_to
    FROM chosen
),
batch AS (
    SELECT * FROM weighed WHERE bytes_up_to - coalesce(pg_column_size(payload), 0) < {value:bytes_max}
),
wanted AS (
    SELECT DISTINCT ON (message_id) * FROM batch WHERE {fits:batch} ORDER BY message_id, id
),
written AS (
    INSERT INTO {table} (
        id, {shard}, category, object_identifier, payload, scheduled_from, scheduled_for, date_added{headers_column}
    )
    OVERRIDING SYSTEM VALUE
    SELECT
        wanted.message_id, {typed_shard:wanted}, wanted.category, wanted.object_identifier::{object_type}, wanted.payload,
        now(), now(), wanted.date_added{headers_of:wanted}
    FROM wanted
    ORDER BY wanted.message_id
    ON CONFLICT DO NOTHING
    RETURNING id
),
moved AS (
    -- Not a join: for two lists whose size it does not know the planner takes nested loops, a million comparisons.
    SELECT max(pairs.letter) AS id
    FROM (SELECT message_id, id AS letter FROM wanted UNION ALL SELECT id, NULL FROM written) AS pairs
    GROUP BY pairs.message_id
    HAVING count(*) = 2
),
gone AS (
    DELETE FROM {schema}.dead_letter AS d USING moved WHERE d.id = moved.id RETURNING 1
)
SELECT count(*) AS looked_at, coalesce(max(batch.id), 0) AS last_id, (SELECT count(*) FROM gone) AS moved
FROM batch

-- name: purge
-- Delete dead letters for good.
-- returns          looked_at, last_id, moved; looked_at is 0 at the end
-- locks            the dead letters that are deleted, until commit
-- index            primary key of outboxd.dead_letter
WITH chosen AS MATERIALIZED (
    SELECT d.id
    FROM {schema}.dead_letter AS d
    WHERE {conditions} AND d.id > {value:after} AND d.id <= {value:until}
    ORDER BY d.id
    LIMIT {value:rows_max}
    FOR UPDATE
),
gone AS (
    DELETE FROM {schema}.dead_letter AS d USING chosen WHERE d.id = chosen.id RETURNING 1
)
SELECT count(*) AS looked_at, coalesce(max(chosen.id), 0) AS last_id, (SELECT count(*) FROM gone) AS moved
FROM chosen

-- name: purge_expired
-- Delete dead letters that have been kept long enough; those that somebody is moving are left for the next time.
-- $1 interval      how long they are kept
-- $2 int4          rows at most
-- returns          how many were deleted
-- locks            the dead letters that are deleted, until commit
-- index            (outbox, buried_at), from one outbox to the next
WITH RECURSIVE known AS ({outboxes}),
expired AS MATERIALIZED (
    SELECT old.id
    FROM known
    CROSS JOIN LATERAL (
        SELECT d.id
        FROM {schema}.dead_letter AS d
        WHERE d.outbox = known.outbox AND d.buried_at < now() - $1::interval
        ORDER BY d.outbox, d.buried_at
        LIMIT $2::int4
        FOR UPDATE SKIP LOCKED
    ) AS old
    LIMIT $2::int4
),
gone AS (
    DELETE FROM {schema}.dead_letter AS d USING expired WHERE d.id = expired.id RETURNING 1
)
SELECT count(*) AS purged FROM gone

-- name: with_ids
-- A fragment: a list.
d.id = ANY ({value:ids}::int8[])

-- name: with_outbox
-- A fragment.
d.outbox = {value:outbox}

-- name: with_region
-- A fragment.
d.region_name = {value:region}

-- name: with_scope
-- A fragment.
d.shard_scope = {value:scope}

-- name: with_shard
-- A fragment: both sides as kill switches are compared, so that a uuid is meant in any spelling.
{canonical:d} = {value:shard}

-- name: with_category
-- A fragment.
d.category = {value:category}

-- name: older_than
-- A fragment: seconds.
d.buried_at < now() - make_interval(secs => {value:older_than})

-- name: newer_than
-- A fragment: seconds.
d.buried_at >= now() - make_interval(secs => {value:newer_than})

-- name: columns
-- A fragment: what is shown of every dead letter.
d.id,
    d.buried_at,
    d.outbox,
    d.region_name,
    d.shard_scope,
    {scope_name:d} AS scope_name,
    d.shard_identifier,
    d.category,
    {category_name:d} AS category_name,
    d.object_identifier,
    d.message_id,
    d.date_added,
    d.attempts,
    d.reason,
    d.buried_by

-- name: outboxes
-- A fragment: of a recursive query "known", which jumps from one outbox to the next.
(SELECT first.outbox FROM {schema}.dead_letter AS first ORDER BY first.outbox LIMIT 1)
UNION ALL
SELECT following.outbox
FROM known
CROSS JOIN LATERAL (
    SELECT more.outbox
    FROM {schema}.dead_letter AS more
    WHERE more.outbox > known.outbox
    ORDER BY more.outbox
    LIMIT 1
) AS following
