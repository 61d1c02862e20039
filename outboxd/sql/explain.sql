-- Why a shard does not move: everything that may keep it, gathered in one row.
--
-- Names in braces beside those of `query.names_of`: {is_shard} (o is a message of the shard that is asked for),
-- {regclass} and {silo} of the outbox, {switches} (what is switched off), {canonical:x} (x.shard_identifier as kill
-- switches are compared).
--
-- Values: shard_scope int4, shard_identifier as its column, shard_text text (the same as text), region_name text or null,
-- rows_max int8 (messages looked at), shard_class and worker_class int4 (lock classes).

-- name: explain
-- returns          one row; lists are JSON
-- index            (<sharding columns>, id); primary keys of the outbox and of outboxd.failure
WITH asked AS (
    SELECT
        {value:shard_scope}::int4 AS shard_scope,
        {value:shard_text}::text AS shard_identifier,
        {value:region_name}::text AS region_name
),
waiting AS MATERIALIZED (
    SELECT o.id, o.category, o.object_identifier::text AS object_identifier, o.scheduled_for, o.date_added
    FROM {table} AS o
    WHERE {is_shard}
    ORDER BY {shard:o}, o.id
    LIMIT {value:rows_max}
),
categories AS (
    SELECT
        w.category,
        {category_name:w} AS category_name,
        count(*) AS messages,
        count(*) FILTER (WHERE w.scheduled_for <= now()) AS due
    FROM waiting AS w
    GROUP BY w.category
    ORDER BY min(w.id)
    LIMIT 100
),
failures AS (
    SELECT
        f.category,
        {category_name:f} AS category_name,
        f.object_identifier,
        f.attempts,
        f.last_error,
        f.first_failed_at,
        f.last_failed_at,
        f.message_id,
        head.scheduled_for AS next_attempt_at,
        (
            SELECT count(*)
            FROM waiting AS w
            WHERE w.category = f.category AND w.object_identifier = f.object_identifier AND w.scheduled_for <= now()
        ) AS due
    FROM asked
    JOIN {schema}.failure AS f
        ON f.outbox = {outbox}
        AND f.shard_scope = asked.shard_scope
        AND f.shard_identifier = asked.shard_identifier
        AND f.region_name = coalesce(asked.region_name, '')
    LEFT JOIN LATERAL (
        SELECT o.scheduled_for FROM {table} AS o WHERE o.id = f.message_id ORDER BY o.id LIMIT 1
    ) AS head ON true
    ORDER BY f.message_id
    LIMIT 20
),
switches AS (
    SELECT
        CASE WHEN s.id IS NULL THEN 'option' ELSE 'pause' END AS kind,
        s.kind AS covers,
        s.category,
        CASE WHEN s.kind = 'category' THEN s.what END AS category_name,
        s.id AS pause,
        s.option,
        s.reason,
        s.author,
        s.since,
        s.expires_at,
        (SELECT o.value::text FROM {schema}.option AS o WHERE o.key = s.option) AS value
    FROM asked
    JOIN (
{switches}
    ) AS s ON s.in_force
    WHERE s.kind = 'outbox' AND s.outbox = {outbox}
        OR s.kind = 'category' AND s.category IN (SELECT category FROM waiting)
        OR s.kind = 'shard'
            AND s.shard_scope = asked.shard_scope
            AND {canonical:s} = {canonical:asked}
            AND (s.region_name IS NULL OR s.region_name = asked.region_name)
    ORDER BY s.since, s.id
    LIMIT 20
),
locks AS MATERIALIZED (
    SELECT l.locktype, l.pid, l.classid::int8 AS classid, l.objid::int8 AS objid, l.virtualtransaction
    FROM pg_locks AS l
    WHERE l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (
            l.locktype = 'advisory' AND l.objsubid = 2
            OR l.locktype = 'relation' AND l.relation = {regclass} AND l.mode = 'RowExclusiveLock'
        )
),
workers AS (
    SELECT
        w.id,
        w.host,
        w.pid,
        w.version,
        w.silo_mode,
        w.started_at,
        w.died_at,
        registered.pid AS backend_pid,
        round(extract(epoch FROM clock_timestamp() - a.state_change), 1)::float8 AS quiet_s,
        a.usename::text AS role,
        has_table_privilege(a.usesysid, {regclass}, 'SELECT')
            AND has_table_privilege(a.usesysid, {regclass}, 'INSERT')
            AND has_table_privilege(a.usesysid, {regclass}, 'UPDATE')
            AND has_table_privilege(a.usesysid, {regclass}, 'DELETE') AS may_drain,
        NOT w.outboxes @> '[{"one_shard": true}]' AS is_daemon -- else an `outboxd drain`
    FROM {schema}.worker AS w
    LEFT JOIN locks AS registered
        ON registered.locktype = 'advisory'
        AND registered.classid = {value:worker_class}
        AND registered.objid = w.id
    LEFT JOIN pg_stat_activity AS a ON a.pid = registered.pid
    WHERE w.silo_mode IN ('monolith', {silo})
        AND w.outboxes @> jsonb_build_array(jsonb_build_object('name', {outbox}::text))
),
daemons AS (
    SELECT w.id, w.host, w.pid, w.version, w.silo_mode, w.started_at, w.died_at, w.backend_pid, w.quiet_s,
        w.role, w.may_drain
    FROM workers AS w
    WHERE w.is_daemon
    -- The living first: one that dies at each start leaves hundreds of rows a day.
    ORDER BY w.backend_pid IS NULL, w.id DESC
    LIMIT 100
),
holder AS (
    SELECT l.pid AS backend_pid, a.application_name, w.is_daemon, w.host, w.pid, w.version, w.started_at, w.quiet_s
    FROM asked
    JOIN locks AS l
        ON l.locktype = 'advisory'
        AND l.classid = {value:shard_class}
        -- A key of 32 bits is shown without its sign.
        AND l.objid = ({lock_key:asked}::int8 & 4294967295)
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    LEFT JOIN workers AS w ON w.backend_pid = l.pid
    LIMIT 1
),
transactions AS (
    -- Who holds this lock has written to the table, or is about to; what it wrote cannot be seen before it commits.
    SELECT
        l.pid,
        a.application_name,
        a.usename::text AS role,
        a.state,
        coalesce(a.xact_start, x.prepared) AS since,
        x.gid AS prepared
    FROM locks AS l
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    -- A prepared transaction has no backend; its lock on its own number tells it by name.
    LEFT JOIN pg_locks AS own
        ON l.pid IS NULL
        AND own.pid IS NULL
        AND own.locktype = 'transactionid'
        AND own.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_prepared_xacts AS x ON x.transaction = own.transactionid
    WHERE l.locktype = 'relation'
        AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND coalesce(a.application_name, '') NOT LIKE 'outboxd: settle %'
    ORDER BY 5, 1
    LIMIT 20
)
SELECT
    now() AS asked_at,
    {outbox} AS outbox,
    asked.region_name AS region,
    {scope_name:asked} AS scope,
    asked.shard_identifier AS shard,
    {lock_key:asked} AS lock_key,
    (SELECT count(*) FROM waiting) AS messages,
    (SELECT count(*) FROM waiting WHERE scheduled_for <= now()) AS due,
    (SELECT count(*) FROM waiting) >= {value:rows_max} AS is_at_least,
    (SELECT min(date_added) FROM waiting) AS oldest_added_at,
    (SELECT max(date_added) FROM waiting) AS newest_added_at,
    (
        SELECT min(w.scheduled_for)
        FROM waiting AS w
        WHERE w.scheduled_for > now()
            AND NOT EXISTS (SELECT FROM switches AS s WHERE s.covers = 'category' AND s.category = w.category)
    ) AS next_due_at,
    (SELECT id FROM waiting ORDER BY id LIMIT 1) AS first_id,
    (SELECT category FROM waiting ORDER BY id LIMIT 1) AS first_category,
    (SELECT coalesce(json_agg(c), '[]') FROM categories AS c) AS categories,
    (SELECT coalesce(json_agg(f), '[]') FROM failures AS f) AS failures,
    (SELECT coalesce(json_agg(s), '[]') FROM switches AS s) AS switches,
    (SELECT row_to_json(h) FROM holder AS h) AS claimed_by,
    (SELECT coalesce(json_agg(d), '[]') FROM daemons AS d) AS daemons,
    (SELECT coalesce(json_agg(t), '[]') FROM transactions AS t) AS transactions,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_activity
FROM asked
LIMIT 1
