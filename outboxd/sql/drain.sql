-- The life of a message in an outbox, in order: find -> claim -> read -> settle (delete, reschedule, bury).
--
-- Statistics cannot be trusted here: a queue is usually empty when it is analysed, and after that 200 000 rows look
-- like none, so that every index seems as good as any other. Hence each look-up leaves the planner one index only: it
-- asks for an order that no other index has. A column that is equal to something needs no order, so the first column is
-- `= ANY` of one value (or bounded from both sides). With sequential scans and sorts disabled, that index is the only
-- plan. (Two row comparisons would do too, but before PostgreSQL 17 the upper one does not end the scan.)
-- Measured on an outbox that was analysed empty: reading two shards among 100 000 rows 34 ms, now 0.2.

-- name: find_scheduled_shards
-- Find shards that have a due message: jumps from one distinct (time, shard) to the next, however many
-- messages lie between, so it costs O(due pairs) and not O(backlog) (I7).
-- $1 timestamptz   the pair to continue after: its time ...
-- $2 int4          pairs at most
-- $3 ...           ... and its shard
-- returns          scheduled_for, lock_key and the shard, in index order; the same shard once for each time
-- index            (scheduled_for, <sharding columns>)
WITH RECURSIVE due AS (
    (
        SELECT scheduled_for, {shard}
        FROM {table}
        WHERE scheduled_for <= now()
            AND (scheduled_for, {shard}) > ($1::timestamptz, {shard_values:3})
        ORDER BY scheduled_for, {shard}
        LIMIT 1
    )
    UNION ALL
    SELECT following.*
    FROM due
    CROSS JOIN LATERAL (
        SELECT o.scheduled_for, {shard:o}
        FROM {table} AS o
        WHERE o.scheduled_for <= now()
            AND (o.scheduled_for, {shard:o}) > (due.scheduled_for, {shard:due})
        ORDER BY o.scheduled_for, {shard:o}
        LIMIT 1
    ) AS following
)
SELECT scheduled_for, {lock_key:due} AS lock_key, {shard}
FROM due
LIMIT $2::int4

-- name: find_shard
-- Find one shard, when it alone is drained.
-- $1 int4          messages to look at, from the first one on
-- $2 ...           the shard
-- returns          scheduled_for of a due message and the shard's lock_key; no row when none of these messages is due
-- index            (<sharding columns>, id)
SELECT head.scheduled_for, {lock_key:head} AS lock_key
FROM (
    SELECT o.scheduled_for, {shard:o}
    FROM {table} AS o
    WHERE {is_shard:o_2}
    ORDER BY {shard:o}, o.id
    LIMIT $1::int4
) AS head
WHERE head.scheduled_for <= now()
LIMIT 1

-- name: find_new
-- Look only at messages above the highest id seen, and at ids below it that were missing then: a wake-up must not walk
-- what was delivered but cannot be vacuumed yet. A hint: what this leaves out is found by find_scheduled_shards.
-- $1 int8          the highest id seen
-- $2 int4          messages at most
-- $3 text          ids that were missing when higher ones were seen, as an array's text
-- returns          first one row with the snapshot: null, the next transaction's number (not xmax: that is one above the
--                  last that has ended, and later ones may run), xmin. Then, for each message that is missing no more, and per
--                  shard: lock_key, highest id, count, scheduled_for of a due message or null, seconds until the next one
--                  that is not due yet becomes due or null, and the shard. Then, of ids that are missing now: null, the
--                  first of some, and their count, ascending
-- index            primary key
WITH new AS MATERIALIZED (
    SELECT id, scheduled_for, {shard}
    FROM {table}
    WHERE id > $1::int8
    ORDER BY id
    LIMIT $2::int4
),
late AS (
    SELECT id, scheduled_for, {shard}
    FROM {table}
    WHERE id = ANY ($3::text::int8[])
    ORDER BY id
)
SELECT
    NULL::int4 AS lock_key,
    pg_snapshot_xmax(pg_current_snapshot())::text::int8 + age(pg_snapshot_xmax(pg_current_snapshot())::xid) AS id_max,
    pg_snapshot_xmin(pg_current_snapshot())::text::int8 AS row_count,
    NULL::timestamptz AS scheduled_for,
    NULL::float8 AS due_in_s,
    {no_shard}
UNION ALL
SELECT
    {lock_key:late},
    late.id,
    1,
    CASE WHEN late.scheduled_for <= now() THEN late.scheduled_for END,
    CASE
        WHEN late.scheduled_for > now() AND late.scheduled_for < 'infinity'
        THEN extract(epoch FROM late.scheduled_for - now())::float8
    END,
    {shard:late}
FROM late
UNION ALL
(
    SELECT
        {lock_key:new},
        max(new.id),
        count(*),
        min(new.scheduled_for) FILTER (WHERE new.scheduled_for <= now()),
        min(extract(epoch FROM new.scheduled_for - now())::float8)
            FILTER (WHERE new.scheduled_for > now() AND new.scheduled_for < 'infinity'),
        {shard:new}
    FROM new
    GROUP BY {shard:new}
    ORDER BY max(new.id)
)
UNION ALL
SELECT NULL, gap.id_before + 1, gap.id - gap.id_before - 1, NULL, NULL, {shard:gap}
FROM (
    SELECT new.*, lag(new.id, 1, $1::int8) OVER (ORDER BY new.id) AS id_before
    FROM new
    WHERE (SELECT count(*) FROM new) < (SELECT max(id) FROM new) - $1::int8
) AS gap
WHERE gap.id > gap.id_before + 1

-- name: highest_id
-- returns          the highest id in the table, or 0
-- index            primary key, backwards
SELECT coalesce((SELECT id FROM {table} ORDER BY id DESC LIMIT 1), 0)::int8 AS id_max

-- name: next_due
-- returns          seconds until the next message that is not due yet becomes due; no row when there is none
-- index            (scheduled_for, <sharding columns>)
SELECT extract(epoch FROM scheduled_for - now())::float8 AS due_in_s
FROM {table}
WHERE scheduled_for > now() AND scheduled_for < 'infinity'
ORDER BY scheduled_for, {shard}
LIMIT 1

-- name: read_failures
-- Read what is known of earlier failures in claimed shards.
-- $1 text          outbox
-- $2 ...           shards, one array's text a column; of texts one array
-- returns          shard_number (from 1), category, object, attempts, last_error, seconds until the failed
--                  group's first message is due (<= 0: due; also when it is gone) and since the last attempt, its id
-- index            primary key of outboxd.failure; primary key of the outbox
SELECT
    claimed.shard_number,
    f.category,
    f.object_identifier,
    f.attempts,
    f.last_error,
    -- Not of the difference: before PostgreSQL 17 there are no infinite intervals.
    coalesce(extract(epoch FROM head.scheduled_for) - extract(epoch FROM now()), 0)::float8 AS due_in_s,
    extract(epoch FROM now() - f.last_failed_at)::float8 AS age_s,
    f.message_id
FROM unnest({shard_texts:2}) WITH ORDINALITY AS claimed ({shard}, shard_number)
CROSS JOIN LATERAL (
    SELECT *
    FROM {schema}.failure AS known
    WHERE known.outbox = ANY (ARRAY[$1::text])
        AND known.shard_scope = claimed.shard_scope
        AND known.shard_identifier = claimed.shard_identifier::text
        AND known.region_name = {region_text:claimed}
    ORDER BY known.outbox, known.shard_scope, known.shard_identifier, known.region_name, known.category
    LIMIT 10000
) AS f
LEFT JOIN LATERAL (
    SELECT o.scheduled_for
    FROM {table} AS o
    WHERE o.id >= f.message_id AND o.id <= f.message_id
    ORDER BY o.id
    LIMIT 1
) AS head ON true

-- name: read_messages
-- Read the messages of claimed shards, oldest id first. The claim was won after the find's snapshot was taken:
-- a shard is read only if it still has a message at the due time that find saw (another drainer may have
-- delivered it, or backed it off, in between). Large payloads are left for read_payload (I10).
-- $1 int4          messages a shard
-- $2 int4          messages in all; shards that are not reached come back empty
-- $3 int4[]        categories that are switched off
-- $4 bool          set failing shards apart: of one with a known failure only a row without id comes back. So it does,
--                  with and without this, of a shard of which nothing is left but what is switched off
-- $5 text          outbox
-- $6 timestamptz[] the due time that find saw; null: any due message will do that is not switched off, among the
--                  first $1
-- $7 int8[]        read only messages above this id; null: all
-- $8 bool          the caller looks among the messages for the due time itself: a look-up of its own walks all that is
--                  dead of the shard a second time (reading W1 behind a held snapshot: 2.2 µs a row, else 1.1)
-- $9 ...           shards, one array's text a column; of texts one array
-- returns          shard_number (from 1, ascending), id, category, object_identifier, payload, large_payload,
--                  headers, scheduled_for, date_added
-- index            (scheduled_for, <sharding columns>) for the check, (<sharding columns>, id) for the messages;
--                  primary key of outboxd.failure
SELECT claimed.shard_number, message.*
FROM (
    SELECT
        given.*,
        $4::bool
            AND (
                SELECT true
                FROM {schema}.failure AS known
                WHERE known.outbox = ANY (ARRAY[$5::text])
                    AND known.shard_scope = given.shard_scope
                    AND known.shard_identifier = given.shard_identifier::text
                    AND known.region_name = {region_text:given}
                ORDER BY known.outbox, known.shard_scope, known.shard_identifier, known.region_name
                LIMIT 1
            ) IS NOT NULL AS is_failing
    FROM unnest($6::timestamptz[], $7::int8[], {shard_texts:9})
        WITH ORDINALITY AS given (due_at, after_id, {shard}, shard_number)
    WHERE $8::bool
        OR CASE
            WHEN given.due_at IS NULL THEN EXISTS (
                SELECT
                FROM (
                    SELECT h.scheduled_for
                    FROM {table} AS h
                    WHERE {is_shard:h_given}
                        AND h.id > coalesce(given.after_id, -9223372036854775808)
                        AND h.category <> ALL ($3::int4[])
                    ORDER BY {shard:h}, h.id
                    LIMIT $1::int4
                ) AS head
                WHERE head.scheduled_for <= now()
            )
            ELSE given.due_at = (
                SELECT d.scheduled_for
                FROM {table} AS d
                WHERE d.scheduled_for = ANY (ARRAY[given.due_at]) AND ({shard:d}) = ({shard:given})
                ORDER BY d.scheduled_for, {shard:d}
                LIMIT 1
            )
        END
    OFFSET 0 -- else is_failing would be computed anew for each message
) AS claimed
LEFT JOIN LATERAL (
    SELECT
        o.id,
        o.category,
        o.object_identifier,
        -- A small stored size can unpack to a hundred times as much, so what is compressed is measured.
        CASE
            WHEN pg_column_size(o.payload) <= 8192
                AND (pg_column_compression(o.payload) IS NULL OR octet_length(o.payload::text) <= 16384)
            THEN o.payload
        END AS payload,
        pg_column_size(o.payload) > 8192
            OR (pg_column_compression(o.payload) IS NOT NULL AND octet_length(o.payload::text) > 16384)
            AS large_payload,
        {headers:o} AS headers,
        o.scheduled_for,
        o.date_added
    FROM {table} AS o
    WHERE {is_shard:o_claimed}
        AND o.id > coalesce(claimed.after_id, -9223372036854775808)
        AND o.category <> ALL ($3::int4[])
        AND NOT claimed.is_failing
    ORDER BY {shard:o}, o.id
    LIMIT $1::int4
) AS message ON true
WHERE claimed.is_failing OR message.id IS NOT NULL OR $3::int4[] <> '{}'
LIMIT $2::int4

-- name: read_payload
-- $1 int8          id
-- returns          the payload; no row when the message is gone
-- index            primary key
SELECT payload FROM {table} WHERE id >= $1::int8 AND id <= $1::int8 ORDER BY id LIMIT 1

-- name: read_scheduled_from
-- When a failed message's attempt was scheduled: needed only then, so it is not read with every message.
-- $1 text          ids, as an array's text
-- returns          id, scheduled_from; no row for a message that is gone
-- index            primary key
SELECT id, scheduled_from FROM {table} WHERE id = ANY ($1::text::int8[]) ORDER BY id

-- name: delete_messages
-- Delete exactly the messages that were read before their receiver ran (I2); never `id < newest`.
-- $1 text          ids, as an array's text: the driver takes 0.16 µs for each element of an array, this takes half
-- index            primary key; the delete itself goes by the physical addresses found there
DELETE FROM {table}
WHERE ctid = ANY (
    ARRAY(
        SELECT o.ctid FROM {table} AS o WHERE o.id = ANY ($1::text::int8[]) ORDER BY o.id
    )
)

-- name: clear_failures
-- Forget failures of objects that have been delivered.
-- $1 text          outbox
-- $2 ...           region_name, shard_scope, shard_identifier, category, object_identifier, one array each
-- returns          one row for each that is forgotten
-- index            primary key of outboxd.failure; the delete itself goes by the physical addresses found there
DELETE FROM {schema}.failure
WHERE ctid = ANY (
    ARRAY(
        SELECT known.address
        FROM unnest($2::text[], $3::int4[], $4::text[], $5::int4[], $6::text[])
            AS done (region_name, shard_scope, shard_identifier, category, object_identifier)
        CROSS JOIN LATERAL (
            SELECT f.ctid AS address
            FROM {schema}.failure AS f
            WHERE f.outbox = ANY (ARRAY[$1::text])
                AND f.shard_scope = done.shard_scope
                AND f.shard_identifier = done.shard_identifier
                AND f.region_name = done.region_name
                AND f.category = done.category
                AND f.object_identifier = done.object_identifier
            ORDER BY
                f.outbox, f.shard_scope, f.shard_identifier, f.region_name, f.category, f.object_identifier
            LIMIT 1
        ) AS known
    )
)
RETURNING 1

-- name: prepare_next_from_shard
-- Move what remains of a shard to its next try, and count the failure. Only if the failed message still has the
-- schedule that was read: whoever lost the claim meanwhile counts nothing twice. In prepared mode the failed group alone
-- was moved, and counted, before its delivery; a failure then moves the rest.
-- $1 text          outbox
-- $2 int8          the failed group's lowest id
-- $3 timestamptz   its scheduled_for as read, or as it was moved before the delivery
-- $4 interval      delay
-- $5 int4          category
-- $6 text          object_identifier
-- $7 text          error
-- $8 int4          messages at most: a retry of a deep shard must not rewrite all of it
-- $9 int8[]        move only these (the object's or the group's own, as read); null: the whole shard
-- $10 int4[]       categories that are switched off: left alone (I11)
-- $11 bool         whether this failure was counted before the delivery
-- $12 ...          the shard
-- returns          one row: attempts (null: somebody else moved it), moved, scheduled_for
-- locks            the moved messages, until commit
-- index            primary key; (<sharding columns>, id)
WITH head AS MATERIALIZED (
    SELECT lowest.id, lowest.address
    FROM (
        SELECT o.id, o.ctid AS address, o.scheduled_for
        FROM {table} AS o
        WHERE o.id >= $2::int8 AND o.id <= $2::int8
        ORDER BY o.id
        LIMIT 1
        FOR UPDATE
    ) AS lowest
    WHERE lowest.scheduled_for = $3::timestamptz
),
remaining AS MATERIALIZED (
    SELECT address FROM head
    UNION ALL
    SELECT own.address
    FROM (SELECT o.ctid AS address FROM {table} AS o WHERE o.id = ANY ($9::int8[]) ORDER BY o.id) AS own
    WHERE EXISTS (SELECT FROM head)
    UNION ALL
    SELECT shard_rows.address
    FROM (
        SELECT o.ctid AS address
        FROM {table} AS o
        WHERE {is_shard:o_12}
            AND o.category <> ALL ($10::int4[])
            AND $9::int8[] IS NULL
            AND EXISTS (SELECT FROM head)
        ORDER BY {shard:o}, o.id
        LIMIT $8::int4
    ) AS shard_rows
),
moved AS (
    UPDATE {table} AS o
    SET scheduled_for = now() + $4::interval, scheduled_from = now()
    WHERE o.ctid = ANY (ARRAY(SELECT address FROM remaining))
    RETURNING 1
),
recorded AS (
    INSERT INTO {schema}.failure AS f (
        outbox, region_name, shard_scope, shard_identifier, category, object_identifier,
        message_id, attempts, last_error, first_failed_at, last_failed_at
    )
    SELECT
        $1::text, {region_value_text:12}, {scope_value:12}, {identifier_value:12}::text, $5::int4, $6::text,
        head.id, 1, $7::text, now(), now()
    FROM head
    ON CONFLICT (outbox, shard_scope, shard_identifier, region_name, category, object_identifier) DO UPDATE
    SET attempts = f.attempts + CASE WHEN $11::bool THEN 0 ELSE 1 END,
        message_id = excluded.message_id,
        last_error = excluded.last_error,
        last_failed_at = excluded.last_failed_at
    RETURNING f.attempts
)
SELECT
    (SELECT attempts FROM recorded) AS attempts,
    (SELECT count(*) FROM moved) AS moved,
    now() + $4::interval AS scheduled_for

-- name: undo_prepared
-- Prepared mode: the delivery was not made. Its messages are due again, and what was known of their object is so again,
-- unless somebody else has moved them meanwhile. They were given twice what they had waited before; half of that stays
-- known, so that the next delay is the same.
-- $1 text          outbox
-- $2 int8          the group's lowest id
-- $3 int8[]        all of its ids
-- $4 timestamptz   where they had been moved to
-- $5 int4          attempts; 0: nothing was known
-- $6 text          error
-- $7 ...           region_name, shard_scope, shard_identifier, category, object_identifier
-- locks            these messages, until commit
-- index            primary key; primary key of outboxd.failure
WITH head AS MATERIALIZED (
    SELECT
    FROM (
        SELECT o.scheduled_for
        FROM {table} AS o
        WHERE o.id >= $2::int8 AND o.id <= $2::int8
        ORDER BY o.id
        LIMIT 1
        FOR UPDATE
    ) AS lowest
    WHERE lowest.scheduled_for = $4::timestamptz
),
put_back AS (
    UPDATE {table} AS o
    SET scheduled_for = now(), scheduled_from = now() - (o.scheduled_for - o.scheduled_from) / 2
    WHERE o.ctid = ANY (
        ARRAY(
            SELECT own.address
            FROM (
                SELECT i.ctid AS address, i.scheduled_for
                FROM {table} AS i
                WHERE i.id = ANY ($3::int8[])
                ORDER BY i.id
            ) AS own
            WHERE own.scheduled_for = $4::timestamptz AND EXISTS (SELECT FROM head)
        )
    )
),
restored AS (
    UPDATE {schema}.failure
    SET attempts = $5::int4, last_error = $6::text
    WHERE outbox = $1::text AND region_name = $7::text AND shard_scope = $8::int4 AND shard_identifier = $9::text
        AND category = $10::int4 AND object_identifier = $11::text
        AND $5::int4 > 0 AND EXISTS (SELECT FROM head)
)
DELETE FROM {schema}.failure
WHERE outbox = $1::text AND region_name = $7::text AND shard_scope = $8::int4 AND shard_identifier = $9::text
    AND category = $10::int4 AND object_identifier = $11::text
    AND $5::int4 = 0 AND EXISTS (SELECT FROM head)

-- name: bury
-- Move messages to the dead letters: they leave the outbox and are kept.
-- $1 text          outbox
-- $2 int8[]        ids
-- $3 int4          attempts
-- $4 text          reason
-- $5 text          by whom
-- returns          how many were buried
-- index            primary key
WITH gone AS (
    DELETE FROM {table} AS o
    WHERE o.ctid = ANY (
        ARRAY(
            SELECT i.ctid FROM {table} AS i WHERE i.id = ANY ($2::int8[]) ORDER BY i.id
        )
    )
    RETURNING o.*
),
kept AS (
    INSERT INTO {schema}.dead_letter (
        outbox, message_id, region_name, shard_scope, shard_identifier, category, object_identifier,
        payload, headers, scheduled_from, scheduled_for, date_added, attempts, reason, buried_by
    )
    SELECT
        $1::text, gone.id, {region_or_null:gone}, gone.shard_scope, gone.shard_identifier::text, gone.category,
        gone.object_identifier::text, gone.payload, {headers:gone}, gone.scheduled_from, gone.scheduled_for,
        gone.date_added, $3::int4, $4::text, $5::text
    FROM gone
    RETURNING 1
)
SELECT count(*) AS buried FROM kept
