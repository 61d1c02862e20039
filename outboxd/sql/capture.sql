-- Capture: triggers that write the messages of a source table, whoever changes it and however.
--
-- Names in braces beside the usual ones: {source} and {alias} (the source table and its bare name; expressions of the
-- configuration may use the latter), {columns} and {values} (of the outbox), {shard_identifier}, {object_identifier},
-- {payload}, {condition}, {regions}: SQL over a row; {keys} (the primary key), {watched} (the columns whose change
-- counts). Names of ours begin with outboxd_, so that no column of a source table is taken for one; outboxd_changed
-- becomes the table that a statement has changed.

-- name: rows
-- A fragment: what the messages need of rows that the model wants: of a transition table, or as they are now.
SELECT
    {keys},
    {watched},
    {shard_identifier} AS outboxd_shard,
    {object_identifier} AS outboxd_object,
    {payload} AS outboxd_payload,
    {regions} AS outboxd_regions
FROM {table} AS {alias}
WHERE {condition}

-- name: columns
-- A fragment: the keys of a transition table; or all of it, with the virtual columns that the server leaves out of it.
SELECT {values} FROM {table}

-- name: now
-- A fragment: the rows of these keys as they are when the trigger fires. One statement may change a row several times, by
-- two cascades or by triggers of the application's own, whose messages are then written before those of the change that
-- set them off: what is read now is the newest in any order. OFFSET 0 keeps it a look-up by the primary key for each row.
({touched}) AS outboxd_touched
CROSS JOIN LATERAL (
    SELECT outboxd_source.*
    FROM outboxd_changed AS outboxd_source
    WHERE {is_touched}
    OFFSET 0
)

-- name: write
-- A fragment: write the messages of `changed`, what is told of an object's past before what is told of its present.
INSERT INTO {outbox} ({columns})
SELECT {values}
FROM ({changed}) AS changed{targets}
ORDER BY changed.outboxd_order

-- name: changed_new
-- A fragment: what an INSERT has left.
SELECT fresh.*, 'insert' AS outboxd_op, 1 AS outboxd_order
FROM ({new_rows}) AS fresh

-- name: changed_gone
-- A fragment: what a DELETE has taken away. A row that is there again is told of as it is; one that had no shard was never
-- told of.
SELECT
    stale.outboxd_shard, stale.outboxd_object,
    CASE WHEN still.outboxd_object IS NULL THEN stale.outboxd_payload ELSE still.outboxd_payload END AS outboxd_payload,
    stale.outboxd_regions,
    CASE WHEN still.outboxd_object IS NULL THEN 'delete' ELSE 'update' END AS outboxd_op,
    1 AS outboxd_order
FROM ({old_rows}) AS stale
LEFT JOIN LATERAL ({new_rows}) AS still USING (outboxd_object)
WHERE stale.outboxd_shard IS NOT NULL AND stale.outboxd_object IS NOT NULL

-- name: changed_all
-- A fragment: what TRUNCATE is about to take away.
SELECT stale.*, 'delete' AS outboxd_op, 1 AS outboxd_order
FROM ({old_rows}) AS stale
WHERE stale.outboxd_shard IS NOT NULL AND stale.outboxd_object IS NOT NULL

-- name: changed_between
-- A fragment: what an UPDATE has changed. Rows are paired by the primary key; what has happened to an object is told by
-- whether it is among the old and the new rows, under whatever key. A row that the model wants no more is one that is gone.
WITH stale AS ({old_rows}), fresh AS ({new_rows})
SELECT
    stale.outboxd_shard, stale.outboxd_object,
    CASE WHEN still.outboxd_object IS NULL THEN stale.outboxd_payload ELSE still.outboxd_payload END AS outboxd_payload,
    stale.outboxd_regions,
    CASE WHEN still.outboxd_object IS NULL THEN 'delete' ELSE 'update' END AS outboxd_op,
    1 AS outboxd_order
FROM stale
LEFT JOIN fresh USING ({key_names})
LEFT JOIN (
    SELECT DISTINCT ON (f.outboxd_object) f.outboxd_object, f.outboxd_payload FROM fresh AS f
) AS still ON still.outboxd_object = stale.outboxd_object
WHERE stale.outboxd_shard IS NOT NULL
    AND stale.outboxd_object IS NOT NULL
    AND (
        fresh.outboxd_object IS NULL
        OR fresh.outboxd_shard IS DISTINCT FROM stale.outboxd_shard
        OR fresh.outboxd_object IS DISTINCT FROM stale.outboxd_object
        OR fresh.outboxd_regions IS DISTINCT FROM stale.outboxd_regions
    )
    AND NOT EXISTS (
        SELECT
        FROM fresh AS told
        WHERE told.outboxd_object = stale.outboxd_object
            AND told.outboxd_shard = stale.outboxd_shard
            AND told.outboxd_regions = stale.outboxd_regions
    )
UNION ALL
SELECT
    fresh.outboxd_shard, fresh.outboxd_object, fresh.outboxd_payload, fresh.outboxd_regions,
    CASE WHEN was.outboxd_object IS NULL THEN 'insert' ELSE 'update' END,
    2
FROM fresh
LEFT JOIN stale USING ({key_names})
LEFT JOIN (SELECT DISTINCT s.outboxd_object FROM stale AS s) AS was ON was.outboxd_object = fresh.outboxd_object
WHERE stale.outboxd_object IS NULL
    OR {is_changed}
    OR fresh.outboxd_shard IS DISTINCT FROM stale.outboxd_shard
    OR fresh.outboxd_object IS DISTINCT FROM stale.outboxd_object
    OR fresh.outboxd_regions IS DISTINCT FROM stale.outboxd_regions

-- name: function
-- One for each source table. It reads rows whoever may see them, and a writer that does not know of the outbox may not
-- write there: so it runs with the rights of an owner, as foreign keys' own actions do, finds what it names where
-- `migrate` found it (temporary objects of a writer come last), and fails rather than be shown some of the rows.
-- A plan that is kept costs a statement of one row a tenth of one that is made anew (here 20 and 140 µs for an INSERT, 40
-- and 500 for an UPDATE), but one that was made for one row pairs a hundred thousand by comparing each with each: so an
-- UPDATE of many is planned for them, and rows are looked up by their key even where the table was small when it was last
-- analysed. Kept plans know the table by its name; a table that was renamed, and a partition, is put in each time.
-- TRUNCATE fires for a table and each of its partitions, and each tells of its own rows.
CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER
SET row_security = off
SET enable_seqscan = off
AS {tag}
#variable_conflict use_column
BEGIN
    IF TG_RELID IS DISTINCT FROM to_regclass({name}) OR TG_OP = 'TRUNCATE' THEN
        EXECUTE replace(
            CASE TG_OP WHEN 'INSERT' THEN {insert} WHEN 'UPDATE' THEN {update} WHEN 'DELETE' THEN {delete} ELSE {truncate} END,
            'outboxd_changed',
            CASE TG_OP WHEN 'TRUNCATE' THEN 'ONLY ' ELSE '' END || TG_RELID::regclass::text
        );
    ELSIF TG_OP = 'INSERT' THEN
{kept_insert};
    ELSIF TG_OP = 'DELETE' THEN
{kept_delete};
    ELSIF EXISTS (SELECT FROM outboxd_old OFFSET 10) THEN
        EXECUTE replace({update}, 'outboxd_changed', TG_RELID::regclass::text);
    ELSE
{kept_update};
    END IF;
    RETURN NULL;
END
{tag}

-- name: mark
COMMENT ON FUNCTION {schema}.{function}() IS {text}

-- name: rights
-- returns          path (what search_path is here, and temporary objects last), may_give (functions, to anyone)
SELECT
    (
        SELECT string_agg(quote_ident(place.name), ', ' ORDER BY place.number)
        FROM unnest(current_schemas(false) || 'pg_temp'::name) WITH ORDINALITY AS place (name, number)
    ) AS path,
    role.rolsuper AS may_give
FROM pg_roles AS role
WHERE role.rolname = current_user

-- name: find_by
ALTER FUNCTION {schema}.{function}() SET search_path = {path}

-- name: keep
-- A trigger of another's table that called it would write messages of that table.
REVOKE ALL ON FUNCTION {schema}.{function}() FROM PUBLIC

-- name: give
ALTER FUNCTION {schema}.{function}() OWNER TO {owner}

-- name: triggers
-- One a kind of statement; COPY and MERGE fire those of what they do. TRUNCATE is met before it, while the rows are there.
CREATE OR REPLACE TRIGGER outboxd_capture_insert AFTER INSERT ON {source}
    REFERENCING NEW TABLE AS outboxd_new
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}();
CREATE OR REPLACE TRIGGER outboxd_capture_update AFTER UPDATE ON {source}
    REFERENCING OLD TABLE AS outboxd_old NEW TABLE AS outboxd_new
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}();
CREATE OR REPLACE TRIGGER outboxd_capture_delete AFTER DELETE ON {source}
    REFERENCING OLD TABLE AS outboxd_old
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}();
CREATE OR REPLACE TRIGGER outboxd_capture_truncate BEFORE TRUNCATE ON {source}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}()

-- name: try_insert
INSERT INTO {source} SELECT WHERE false

-- name: try_update
UPDATE {source} SET {column} = DEFAULT WHERE false

-- name: try_delete
DELETE FROM {source} WHERE false

-- name: drop_triggers
DROP TRIGGER IF EXISTS outboxd_capture_insert ON {source};
DROP TRIGGER IF EXISTS outboxd_capture_update ON {source};
DROP TRIGGER IF EXISTS outboxd_capture_delete ON {source};
DROP TRIGGER IF EXISTS outboxd_capture_truncate ON {source}

-- name: partitions
-- A table and its partitions, however deep: a statement fires the triggers of the table that it names, and of no other.
-- $1 oid           a table
-- $2 text          the function, with its schema, quoted
-- returns          oid, name (quoted and qualified), triggers (how many it has that call the function, and are enabled)
WITH RECURSIVE family (oid) AS (
    SELECT $1::oid
    UNION ALL
    SELECT i.inhrelid FROM family JOIN pg_inherits AS i ON i.inhparent = family.oid
)
SELECT
    c.oid,
    format('%I.%I', n.nspname, c.relname) AS name,
    (
        SELECT count(*)
        FROM pg_trigger AS t
        WHERE t.tgrelid = c.oid
            AND t.tgname LIKE 'outboxd\_capture\_%'
            AND t.tgenabled IN ('O', 'A')
            AND t.tgfoid = to_regprocedure($2::text || '()')
    ) AS triggers
FROM family
JOIN pg_class AS c USING (oid)
JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY c.oid

-- name: mark_of
-- $1 text          a function, with its schema, quoted
-- returns          text; null where it is not there
SELECT obj_description(to_regprocedure($1::text || '()'), 'pg_proc') AS text

-- name: captured
-- $1 text          schema of outboxd's own tables
-- returns          oid, name of every table that has triggers of ours
SELECT DISTINCT c.oid, format('%I.%I', n.nspname, c.relname) AS name
FROM pg_trigger AS t
JOIN pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_class AS c ON c.oid = t.tgrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgname LIKE 'outboxd\_capture\_%' AND p.pronamespace = to_regnamespace($1::text)
ORDER BY c.oid

-- name: functions_without_triggers
-- $1 text          schema of outboxd's own tables
-- returns          name (quoted and qualified)
SELECT format('%I.%I', n.nspname, p.proname) AS name
FROM pg_proc AS p
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE p.pronamespace = to_regnamespace($1::text)
    AND p.proname LIKE 'capture\_%'
    AND p.prorettype = 'trigger'::regtype
    AND obj_description(p.oid, 'pg_proc') LIKE 'Writes the messages of %'
    AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = p.oid)
