-- Capture: triggers that write the messages of a source table, whoever changes it and however.
--
-- Names in braces beside the usual ones: {source} and {alias} (the source table and its bare name; expressions of the
-- configuration may use the latter), {columns} and {values} (of the outbox), {shard_identifier}, {object_identifier},
-- {payload}, {condition}, {regions}: SQL over a row; {keys} (the primary key), {watched} (the columns whose change
-- counts). Names of ours begin with outboxd_, so that no column of a source table is taken for one; outboxd_changed
-- becomes the table that a statement has changed.

-- name: rows
-- A fragment: what the messages need of rows that the model wants: of a transition table, or as they are now. Shards and
-- objects are compared as the outbox keeps them: `A` and `a` are equal to citext, and two objects there.
SELECT
    {keys},
    {watched},
    ({shard_identifier})::{shard_type} AS outboxd_shard,
    ({object_identifier})::{object_type} AS outboxd_object,
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
-- set them off: what is read now is the newest in any order. By the primary key and no other index (see drain.sql),
-- whatever was known of the table when the plan was made.
({touched}) AS outboxd_touched
CROSS JOIN LATERAL (
    SELECT outboxd_source.*
    FROM outboxd_changed AS outboxd_source
    WHERE {is_touched}
    ORDER BY {order}
    LIMIT 1
)

-- name: write
-- A fragment: write the messages of `changed`, what is told of an object's past before what is told of its present; and
-- find out whether one has no shard or no object. A place is a region, or the one outbox that knows no regions.
WITH outboxd_changes AS MATERIALIZED ({changed}),
outboxd_written AS (
    INSERT INTO {outbox} ({columns})
    SELECT {values}
    FROM outboxd_changes{targets}
    WHERE outboxd_changes.outboxd_shard IS NOT NULL AND outboxd_changes.outboxd_object IS NOT NULL
    ORDER BY outboxd_changes.outboxd_order
)
SELECT EXISTS (
    SELECT
    FROM outboxd_changes{targets}
    WHERE outboxd_changes.outboxd_shard IS NULL OR outboxd_changes.outboxd_object IS NULL
)

-- name: regions
-- A fragment: each region that a row names, once.
CROSS JOIN LATERAL (
    SELECT DISTINCT named.region
    FROM unnest(outboxd_changes.outboxd_regions) AS named (region)
    WHERE named.region IS NOT NULL
) AS target (outboxd_region)

-- name: changed_new
-- A fragment: what an INSERT has left.
SELECT outboxd_fresh.*, 'insert' AS outboxd_op, 1 AS outboxd_order
FROM ({new_rows}) AS outboxd_fresh

-- name: changed_gone
-- A fragment: what a DELETE has taken away. A row that is there again is told of as it is; one that had no shard was never
-- told of.
SELECT
    outboxd_stale.outboxd_shard, outboxd_stale.outboxd_object,
    CASE
        WHEN outboxd_still.outboxd_object IS NULL THEN outboxd_stale.outboxd_payload
        ELSE outboxd_still.outboxd_payload
    END AS outboxd_payload,
    outboxd_stale.outboxd_regions,
    CASE WHEN outboxd_still.outboxd_object IS NULL THEN 'delete' ELSE 'update' END AS outboxd_op,
    1 AS outboxd_order
FROM ({old_rows}) AS outboxd_stale
LEFT JOIN LATERAL ({new_rows}) AS outboxd_still ON outboxd_still.outboxd_object = outboxd_stale.outboxd_object
WHERE outboxd_stale.outboxd_shard IS NOT NULL AND outboxd_stale.outboxd_object IS NOT NULL

-- name: changed_all
-- A fragment: what TRUNCATE is about to take away.
SELECT outboxd_stale.*, 'delete' AS outboxd_op, 1 AS outboxd_order
FROM ({old_rows}) AS outboxd_stale
WHERE outboxd_stale.outboxd_shard IS NOT NULL AND outboxd_stale.outboxd_object IS NOT NULL

-- name: changed_between
-- A fragment: what an UPDATE has changed. Rows are paired by the primary key; what has happened to an object is told by
-- whether it is among the old and the new rows, under whatever key. A row that the model wants no more is one that is gone.
WITH outboxd_stale AS ({old_rows}), outboxd_fresh AS ({new_rows})
SELECT
    outboxd_stale.outboxd_shard, outboxd_stale.outboxd_object,
    CASE
        WHEN outboxd_still.outboxd_object IS NULL THEN outboxd_stale.outboxd_payload
        ELSE outboxd_still.outboxd_payload
    END AS outboxd_payload,
    outboxd_stale.outboxd_regions,
    CASE WHEN outboxd_still.outboxd_object IS NULL THEN 'delete' ELSE 'update' END AS outboxd_op,
    1 AS outboxd_order
FROM outboxd_stale
LEFT JOIN outboxd_fresh ON {same_key}
LEFT JOIN (
    SELECT DISTINCT ON (f.outboxd_object) f.outboxd_object, f.outboxd_payload FROM outboxd_fresh AS f
) AS outboxd_still ON outboxd_still.outboxd_object = outboxd_stale.outboxd_object
WHERE outboxd_stale.outboxd_shard IS NOT NULL
    AND outboxd_stale.outboxd_object IS NOT NULL
    AND (
        outboxd_fresh.outboxd_object IS NULL
        OR outboxd_fresh.outboxd_shard IS DISTINCT FROM outboxd_stale.outboxd_shard
        OR outboxd_fresh.outboxd_object IS DISTINCT FROM outboxd_stale.outboxd_object
        OR outboxd_fresh.outboxd_regions IS DISTINCT FROM outboxd_stale.outboxd_regions
    )
    AND NOT EXISTS (
        SELECT
        FROM outboxd_fresh AS told
        WHERE told.outboxd_object = outboxd_stale.outboxd_object
            AND told.outboxd_shard = outboxd_stale.outboxd_shard
            AND told.outboxd_regions = outboxd_stale.outboxd_regions
    )
UNION ALL
SELECT
    outboxd_fresh.outboxd_shard, outboxd_fresh.outboxd_object, outboxd_fresh.outboxd_payload,
    outboxd_fresh.outboxd_regions,
    CASE WHEN outboxd_was.outboxd_object IS NULL THEN 'insert' ELSE 'update' END,
    2
FROM outboxd_fresh
LEFT JOIN outboxd_stale ON {same_key}
LEFT JOIN (SELECT DISTINCT s.outboxd_object FROM outboxd_stale AS s) AS outboxd_was
    ON outboxd_was.outboxd_object = outboxd_fresh.outboxd_object
WHERE outboxd_stale.outboxd_object IS NULL
    OR {is_changed}
    OR outboxd_fresh.outboxd_shard IS DISTINCT FROM outboxd_stale.outboxd_shard
    OR outboxd_fresh.outboxd_object IS DISTINCT FROM outboxd_stale.outboxd_object
    OR outboxd_fresh.outboxd_regions IS DISTINCT FROM outboxd_stale.outboxd_regions

-- name: function
-- One for each source table. It reads rows whoever may see them, and a writer that does not know of the outbox may not
-- write there: so it runs with the rights of the table's owner, as foreign keys' own actions do. What its writer could
-- bend is fixed: where names are found (functions and operators in pg_catalog alone), how literals are read and values
-- become text; where a policy would hide rows it fails.
-- Its plans are kept (here an INSERT of one row costs 20 µs more, an UPDATE 60; planned anew 140 and 500), so they must be
-- right for one row and for a hundred thousand: joins by hashes, rows by their key. (Before PostgreSQL 18 a disabled node
-- that cannot be avoided seems to cost so much that every statement would be compiled.) Kept plans know the table by its
-- name; for a partition, or a table that was renamed, the name is put in each time.
-- TRUNCATE fires for a table and each of its partitions, and each tells of its own rows.
CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET row_security = off
SET standard_conforming_strings = on
SET extra_float_digits = 1
SET datestyle = 'ISO, MDY'
SET intervalstyle = 'postgres'
SET bytea_output = 'hex'
SET jit = off
SET enable_nestloop = off
SET enable_seqscan = off
SET enable_sort = off
SET enable_incremental_sort = off
AS {tag}
#variable_conflict use_column
DECLARE
    outboxd_is_lacking boolean;
BEGIN
    IF TG_RELID IS DISTINCT FROM to_regclass({name}) OR TG_OP = 'TRUNCATE' THEN
        EXECUTE replace(
            CASE TG_OP WHEN 'INSERT' THEN {insert} WHEN 'UPDATE' THEN {update} WHEN 'DELETE' THEN {delete} ELSE {truncate} END,
            'outboxd_changed',
            CASE TG_OP WHEN 'TRUNCATE' THEN 'ONLY ' ELSE '' END || TG_RELID::regclass::text
        ) INTO outboxd_is_lacking;
    ELSIF TG_OP = 'INSERT' THEN
{kept_insert} INTO outboxd_is_lacking;
    ELSIF TG_OP = 'DELETE' THEN
{kept_delete} INTO outboxd_is_lacking;
    ELSE
{kept_update} INTO outboxd_is_lacking;
    END IF;
    IF outboxd_is_lacking THEN  -- the server's own error would show the row to a writer who may not read it
        RAISE not_null_violation USING
            MESSAGE = {lacking},
            HINT = 'Rows that have none can be left out by where_sql of the [[model]].';
    END IF;
    RETURN NULL;
END
{tag}

-- name: mark
COMMENT ON FUNCTION {schema}.{function}() IS {text}

-- name: keep
-- A trigger of another's table that called it would write messages of that table.
REVOKE ALL ON FUNCTION {schema}.{function}() FROM {grantee}

-- name: give
ALTER FUNCTION {schema}.{function}() OWNER TO {owner}

-- name: state
-- What there is of a function.
-- $1 text          the function, with its schema, quoted
-- returns          mark (its comment), owner, is_definer, grantees (who else may call it, quoted); no row: it is not there
SELECT
    obj_description(p.oid, 'pg_proc') AS mark,
    pg_get_userbyid(p.proowner)::text AS owner,
    p.prosecdef AS is_definer,
    ARRAY(
        SELECT CASE entry.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(entry.grantee)) END
        FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS entry
        WHERE entry.grantee <> p.proowner
    ) AS grantees
FROM pg_proc AS p
WHERE p.oid = to_regprocedure($1::text || '()')

-- name: lacking
-- What the owner of a table may not do that a function of his must.
-- $1 oid           the table
-- $2 oid           the outbox
-- returns          remedy, one SQL statement a row
WITH RECURSIVE family (oid) AS (
    SELECT $1::oid
    UNION ALL
    SELECT i.inhrelid FROM family JOIN pg_inherits AS i ON i.inhparent = family.oid
),
owned AS (
    SELECT pg_get_userbyid(c.relowner) AS owner, quote_ident(pg_get_userbyid(c.relowner)) AS quoted
    FROM pg_class AS c
    WHERE c.oid = $1::oid
)
SELECT format('GRANT SELECT ON %s TO %s', family.oid::regclass, owned.quoted) AS remedy
FROM family CROSS JOIN owned
WHERE NOT has_table_privilege(owned.owner, family.oid, 'SELECT')
UNION
SELECT format('GRANT USAGE ON SCHEMA %s TO %s', c.relnamespace::regnamespace, owned.quoted)
FROM pg_class AS c
CROSS JOIN owned
WHERE (c.oid = $2::oid OR c.oid IN (SELECT oid FROM family))
    AND NOT has_schema_privilege(owned.owner, c.relnamespace, 'USAGE')
UNION
SELECT format('GRANT INSERT ON %s TO %s', $2::oid::regclass, owned.quoted)
FROM owned
WHERE NOT has_table_privilege(owned.owner, $2::oid, 'INSERT')
UNION
SELECT format('GRANT USAGE ON SEQUENCE %s TO %s', s.oid::regclass, owned.quoted)
FROM pg_attrdef AS f
JOIN pg_depend AS d
    ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class AS s ON s.oid = d.refobjid
CROSS JOIN owned
WHERE f.adrelid = $2::oid
    -- CASE, because the function fails on what is not a sequence, and AND has no order.
    AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(owned.owner, s.oid, 'USAGE, UPDATE') END
UNION
SELECT
    format(
        CASE WHEN c.relowner = r.oid THEN 'ALTER TABLE %s NO FORCE ROW LEVEL SECURITY' ELSE 'ALTER ROLE %s BYPASSRLS' END,
        CASE WHEN c.relowner = r.oid THEN c.oid::regclass::text ELSE owned.quoted END
    )
FROM pg_class AS c
CROSS JOIN owned
JOIN pg_roles AS r ON r.rolname = owned.owner
WHERE (c.oid = $2::oid OR c.oid IN (SELECT oid FROM family))
    AND c.relrowsecurity
    AND (c.relforcerowsecurity OR c.relowner <> r.oid)
    AND NOT r.rolsuper
    AND NOT r.rolbypassrls

-- name: key_operators
-- $1 oid           a table
-- returns          equal, at_least, at_most, one row a column of the primary key: operators of its index, ready for SQL; null
--                  where that is no btree
SELECT
    max(named.text) FILTER (WHERE named.strategy = 3) AS equal,
    max(named.text) FILTER (WHERE named.strategy = 4) AS at_least,
    max(named.text) FILTER (WHERE named.strategy = 2) AS at_most
FROM pg_index AS i
CROSS JOIN LATERAL unnest(i.indclass::oid[]) WITH ORDINALITY AS kind (oid, number)
LEFT JOIN (
    SELECT c.oid, a.amopstrategy AS strategy, format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS text
    FROM pg_opclass AS c
    JOIN pg_am AS m ON m.oid = c.opcmethod AND m.amname = 'btree'
    JOIN pg_amop AS a
        ON a.amopfamily = c.opcfamily AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
    JOIN pg_operator AS o ON o.oid = a.amopopr
    JOIN pg_namespace AS n ON n.oid = o.oprnamespace
) AS named ON named.oid = kind.oid
WHERE i.indrelid = $1::oid AND i.indisprimary AND kind.number <= i.indnkeyatts
GROUP BY kind.number
ORDER BY kind.number

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

-- name: only_ours
-- Other triggers of the table may refuse a statement that they do not know, or do what its owner likes.
ALTER TABLE {source} DISABLE TRIGGER USER;
ALTER TABLE {source} ENABLE TRIGGER outboxd_capture_insert;
ALTER TABLE {source} ENABLE TRIGGER outboxd_capture_update;
ALTER TABLE {source} ENABLE TRIGGER outboxd_capture_delete;
SET LOCAL ROLE {owner}

-- name: try_types
-- Whether an INSERT would take the values as they are: our casts go further.
INSERT INTO {outbox} (shard_identifier, object_identifier)
SELECT {shard_identifier}, {object_identifier} FROM {source} AS {alias} WHERE false

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
-- $3 text          its schema, quoted
-- returns          oid, name (quoted and qualified), triggers (how many it has that call the function, and are enabled),
--                  others (schemas of functions that triggers with these names call there, beside the function's own)
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
    ) AS triggers,
    ARRAY(
        SELECT DISTINCT p.pronamespace::regnamespace::text
        FROM pg_trigger AS t
        JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = c.oid
            AND t.tgname LIKE 'outboxd\_capture\_%'
            AND p.pronamespace <> to_regnamespace($3::text)
            AND obj_description(p.oid, 'pg_proc') LIKE 'Writes the messages of %'
    ) AS others
FROM family
JOIN pg_class AS c USING (oid)
JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY c.oid

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
