-- What `outboxd check` asks beyond the statements of inspect.sql. All read the catalog only and lock nothing.

-- name: server
-- returns          version number, in recovery, read-only by default, autovacuum on, clock, role, database
SELECT current_setting('server_version_num')::int4 AS version,
       pg_is_in_recovery() AS in_recovery,
       current_setting('default_transaction_read_only')::bool AS read_only,
       current_setting('autovacuum')::bool AND current_setting('track_counts')::bool AS autovacuum,
       clock_timestamp() AS clock,
       current_user::text AS role,
       current_database()::text AS database

-- name: identity
-- returns          what tells one database from another, also through a pooler
SELECT current_database()::text AS database, pg_postmaster_start_time() AS started_at

-- name: has_role
-- $1 text          a role's name
-- returns          whether it exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1::text) AS found

-- name: sees_activity
-- $1 text          a role's name
-- returns          whether it sees when the transactions of other roles began
SELECT pg_has_role($1::text, 'pg_read_all_stats', 'USAGE') AS sees_activity

-- name: quoted
-- $1 text          a name
-- returns          the name as SQL writes it, without quotes where none are needed
SELECT quote_ident($1::text) AS name

-- name: table_named
-- Look a table up without needing USAGE on its schema.
-- $1 text          schema; null: what the search_path finds, else any schema that this role may not use
-- $2 text          table
-- returns          oid, schema, name (quoted where needed), owner; at most one row
SELECT c.oid, n.nspname::text AS schema, format('%I.%I', n.nspname, c.relname) AS name,
       pg_get_userbyid(c.relowner)::text AS owner
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = $2::text AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND ($1::text = n.nspname
       OR $1::text IS NULL AND (pg_table_is_visible(c.oid) OR NOT has_schema_privilege(n.oid, 'USAGE')))
ORDER BY pg_table_is_visible(c.oid) DESC, n.nspname
LIMIT 1

-- name: schema_tables
-- $1 text          a schema
-- returns          oid, name (quoted where needed), bare name, owner of its tables
SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relname::text AS bare,
       pg_get_userbyid(c.relowner)::text AS owner
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relkind = 'r'
ORDER BY c.relname

-- name: missing_on_tables
-- $1 text          role
-- $2 oid[]         tables
-- $3 text[]        privileges
-- returns          oid, privilege; one row for each that the role lacks
SELECT t.oid, p.privilege
FROM unnest($2::oid[]) AS t (oid) CROSS JOIN unnest($3::text[]) WITH ORDINALITY AS p (privilege, position)
WHERE NOT has_table_privilege($1::text, t.oid, p.privilege)
ORDER BY t.oid, p.position

-- name: lacks_on_schema
-- $1 text          role
-- $2 text          schema
-- $3 text          privilege
-- returns          true when the schema exists and the role lacks it
SELECT EXISTS (
    SELECT FROM pg_namespace WHERE nspname = $2::text AND NOT has_schema_privilege($1::text, oid, $3::text)
) AS lacks

-- name: lacks_create_on_database
-- $1 text          role
SELECT NOT has_database_privilege($1::text, current_database(), 'CREATE') AS lacks

-- name: sequences_without_usage
-- Sequences behind a column's default (an identity column needs no privilege of its own).
-- $1 text          role
-- $2 oid           table
-- returns          name (quoted where needed)
SELECT DISTINCT format('%I.%I', n.nspname, s.relname) AS name
FROM pg_attrdef f
JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
                AND d.refclassid = 'pg_class'::regclass
JOIN pg_class s ON s.oid = d.refobjid
JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE f.adrelid = $2::oid
  -- CASE, because the function fails on what is not a sequence, and AND has no order.
  AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege($1::text, s.oid, 'USAGE, UPDATE') END

-- name: is_member
-- $1 text          role
-- $2 text          owner
-- returns          whether the role may act as the owner
SELECT pg_has_role($1::text, $2::text, 'USAGE') AS is_member

-- name: schema_owner
-- $1 text          schema
SELECT pg_get_userbyid(nspowner)::text AS owner FROM pg_namespace WHERE nspname = $1::text
