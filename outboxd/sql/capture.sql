-- Capture: triggers that write the messages of a source table, whoever changes it and however.
--
-- Names in braces beside the usual ones: {source} and {alias} (the source table and its bare name; expressions of the
-- configuration may use the latter), {columns} and {values} (of the outbox), {shard_identifier}, {object_identifier},
-- {payload}, {payload_of_deleted}, {condition}, {regions}: SQL over a row; {keys} (the primary key), {watched} (the
-- columns whose change counts). Names of ours begin with outboxd_, so that no column of a source table is taken for one.

-- name: rows
-- A fragment: what the messages need of the rows of one transition table.
SELECT
    {keys},
    {watched},
    {shard_identifier} AS outboxd_shard,
    {object_identifier} AS outboxd_object,
    {payload} AS outboxd_payload,
    {regions} AS outboxd_regions,
    {condition} AS outboxd_wanted
FROM {table} AS {alias}

-- name: write
-- A fragment: write the messages of `changed`. A row without the wanted condition has none.
INSERT INTO {outbox} ({columns})
SELECT {values}
FROM ({changed}) AS changed{targets}
WHERE changed.outboxd_wanted

-- name: changed_once
-- A fragment: every row of one transition table.
SELECT rows.*, {op}::text AS outboxd_op FROM ({rows}) AS rows

-- name: changed_between
-- A fragment: what an UPDATE has changed. Old and new rows are paired by the primary key. A row that has got another shard
-- or object is told of where it stood before, too; one whose key has changed is another row.
SELECT
    fresh.outboxd_shard, fresh.outboxd_object, fresh.outboxd_payload, fresh.outboxd_regions,
    fresh.outboxd_wanted OR stale.outboxd_wanted IS TRUE AS outboxd_wanted,
    CASE WHEN stale.outboxd_object IS NULL THEN 'insert' ELSE 'update' END AS outboxd_op
FROM ({new_rows}) AS fresh
LEFT JOIN ({old_rows}) AS stale USING ({key_names})
WHERE stale.outboxd_object IS NULL
    OR {is_changed}
    OR stale.outboxd_shard IS DISTINCT FROM fresh.outboxd_shard
    OR stale.outboxd_object IS DISTINCT FROM fresh.outboxd_object
    OR stale.outboxd_wanted IS DISTINCT FROM fresh.outboxd_wanted
UNION ALL
SELECT
    stale.outboxd_shard, stale.outboxd_object,
    CASE WHEN fresh.outboxd_object IS NOT DISTINCT FROM stale.outboxd_object THEN fresh.outboxd_payload ELSE stale.outboxd_gone END,
    stale.outboxd_regions, stale.outboxd_wanted,
    CASE WHEN fresh.outboxd_object IS NOT DISTINCT FROM stale.outboxd_object THEN 'update' ELSE 'delete' END
FROM ({old_rows}) AS stale
LEFT JOIN ({new_rows}) AS fresh USING ({key_names})
WHERE fresh.outboxd_object IS NULL
    OR stale.outboxd_shard IS DISTINCT FROM fresh.outboxd_shard
    OR stale.outboxd_object IS DISTINCT FROM fresh.outboxd_object

-- name: function
-- One for each source table. Static statements: each session plans them once, whichever of them it meets.
CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS trigger LANGUAGE plpgsql AS {tag}
#variable_conflict use_column
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
{insert};
    WHEN 'UPDATE' THEN
{update};
    WHEN 'DELETE' THEN
{delete};
    ELSE
{truncate};
    END CASE;
    RETURN NULL;
END
{tag}

-- name: mark
COMMENT ON FUNCTION {schema}.{function}() IS {text}

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
-- returns          oid, name (quoted and qualified), triggers (how many of ours it has that are enabled)
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
        WHERE t.tgrelid = c.oid AND t.tgname LIKE 'outboxd\_capture\_%' AND t.tgenabled <> 'D'
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
    AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = p.oid)
