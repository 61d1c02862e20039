-- What the catalog knows about a table. All statements read pg_catalog only: they need no privilege on the
-- table, take no lock beyond the catalog's own, and cost a few index probes.

-- name: relation
-- The table that a name stands for, by the search_path when it is not qualified.
-- $1 text          quoted name, qualified or not
-- returns          oid, schema, name, kind …; no row when there is none
SELECT c.oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       c.relispartition OR c.relhassubclass AS is_inherited,
       pg_get_userbyid(c.relowner)::text AS owner,
       row_security_active(c.oid) AS row_security,
       coalesce(c.reloptions, '{}') AS options
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass($1)

-- name: columns
-- $1 oid           the table
-- returns          name, type …; one row a living column, in order
SELECT a.attname::text AS name,
       format_type(a.atttypid, NULL) AS type,
       a.attnotnull AS not_null,
       a.atthasdef OR a.attidentity <> '' AS has_default,
       a.attidentity::text AS identity,
       CASE WHEN a.attgenerated = 'v' THEN pg_get_expr(d.adbin, d.adrelid) END AS virtual
FROM pg_attribute a
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum

-- name: indexes
-- `is_plain`: a btree over whole rows, columns only, all ascending. `is_building`: another session is building it
-- right now; invalid ones that nobody builds are leftovers.
-- $1 oid           the table
-- returns          schema, name, what it is, keys; one row an index
SELECT n.nspname::text AS schema,
       c.relname::text AS name,
       i.indisvalid AND i.indisready AS is_valid,
       i.indisunique AND i.indimmediate AS is_unique,
       i.indisprimary AS is_primary,
       am.amname = 'btree' AND i.indpred IS NULL AND i.indexprs IS NULL
           AND 0 = ALL (i.indoption::int2[]) AS is_plain,
       ARRAY(SELECT a.attname::text
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.position <= i.indnkeyatts
             ORDER BY k.position) AS keys,
       EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid) AS is_building
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_am am ON am.oid = c.relam
WHERE i.indrelid = $1
ORDER BY c.relname

-- name: triggers
-- $1 oid           the table
-- $2 name          the trigger
-- returns          is_enabled, false after DISABLE TRIGGER; no row when there is none
SELECT t.tgenabled IN ('O', 'A') AS is_enabled
FROM pg_trigger t
WHERE t.tgrelid = $1 AND t.tgname = $2 AND NOT t.tgisinternal

-- name: has_table
-- Works without USAGE on the schema, where to_regclass would fail.
-- $1 text          schema
-- $2 text          table
-- returns          whether it exists
SELECT EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1::text AND c.relname = $2::text
) AS found

-- name: migrated_to
-- The newest migration that this database has had.
-- returns          number; 0 when there was none
SELECT coalesce(max(number), 0) AS number FROM {schema}.migration
