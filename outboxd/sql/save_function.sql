-- The function by which any language writes a message: outboxd.save(…). Made anew by `outboxd migrate` when the
-- configuration has changed.

-- name: save
-- One for each pair of types that identifiers may be given as. What is given is cast to the column's type, so that the
-- one for texts serves every table: drivers that send parameters without a type choose that one. Its statements are static, so that
-- each session plans them once; and only those that it meets, so that a missing table breaks its own outbox only (I14).
-- It looks for the tables where `migrate` found them, whatever the caller's search_path says.
CREATE OR REPLACE FUNCTION {schema}.save(
    category text,
    shard_identifier {given_shard},
    object_identifier {given_object},
    payload jsonb DEFAULT NULL,
    region_name text DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    outbox text DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS {tag}
DECLARE
    known {schema}.category%ROWTYPE;
    wanted text := save.outbox;
    number bigint;
BEGIN
    SELECT c.* INTO known FROM {schema}.category AS c WHERE c.name = save.category;
    IF known.value IS NULL THEN
        RAISE EXCEPTION 'there is no category %', save.category
            USING ERRCODE = 'invalid_parameter_value', HINT = 'After a change of categories run: outboxd migrate';
    END IF;
    IF wanted IS NULL THEN
        wanted := CASE WHEN save.region_name IS NULL THEN {without_region} ELSE {with_region} END;
    END IF;
    CASE wanted{branches}
    ELSE
        RAISE EXCEPTION '%: no outbox % for a message with region_name %',
            save.category, coalesce(wanted, 'fits alone'), coalesce(save.region_name, 'null')
            USING ERRCODE = 'invalid_parameter_value', HINT = {hint};
    END CASE;
    RETURN number;
END
{tag}

-- name: branch
-- One outbox without regions. Headers are named only where there are some: the table may be without the column.

    WHEN {name} THEN
        IF save.region_name IS NOT NULL THEN
            RAISE EXCEPTION '%: outbox % takes no region_name', save.category, wanted
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF save.headers IS NULL THEN
            INSERT INTO {table} (shard_scope, shard_identifier, category, object_identifier, payload)
            VALUES (
                known.scope_value, CAST(save.shard_identifier AS {shard_type}),
                known.value, CAST(save.object_identifier AS {object_type}), save.payload
            )
            RETURNING id INTO number;
        ELSE
            INSERT INTO {table} (shard_scope, shard_identifier, category, object_identifier, payload, headers)
            VALUES (
                known.scope_value, CAST(save.shard_identifier AS {shard_type}),
                known.value, CAST(save.object_identifier AS {object_type}), save.payload, save.headers
            )
            RETURNING id INTO number;
        END IF;

-- name: branch_with_region
-- One outbox that shards by region.

    WHEN {name} THEN
        IF coalesce(save.region_name, '') = '' THEN
            RAISE EXCEPTION '%: outbox % needs a region_name', save.category, wanted
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF save.headers IS NULL THEN
            INSERT INTO {table} (region_name, shard_scope, shard_identifier, category, object_identifier, payload)
            VALUES (
                save.region_name, known.scope_value, CAST(save.shard_identifier AS {shard_type}),
                known.value, CAST(save.object_identifier AS {object_type}), save.payload
            )
            RETURNING id INTO number;
        ELSE
            INSERT INTO {table} (
                region_name, shard_scope, shard_identifier, category, object_identifier, payload, headers
            )
            VALUES (
                save.region_name, known.scope_value, CAST(save.shard_identifier AS {shard_type}),
                known.value, CAST(save.object_identifier AS {object_type}), save.payload, save.headers
            )
            RETURNING id INTO number;
        END IF;

-- name: mark
-- What tells which configuration a function was made by.
COMMENT ON FUNCTION {signature} IS {text}

-- name: marks
-- returns          signature, comment; null where there is no such function
SELECT wanted.signature, obj_description(to_regprocedure(wanted.signature), 'pg_proc') AS text
FROM (VALUES {signatures}) AS wanted (signature)
