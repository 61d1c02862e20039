-- Objects of source tables that were found gone when a message about them was delivered: one row for each, the first
-- time. Only of models with `tombstones = true`; nobody deletes them but you.
CREATE TABLE {schema}.tombstone (
    table_name text NOT NULL,
    object_identifier text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, object_identifier)
);
