-- Claims and registration: statements of the claim session. None of them touches an outbox table, so a locked
-- outbox cannot keep the session from answering (I14).

-- name: claim
-- Win shards by locking their keys. The keys are distinct and none is held by this session: the lock function is
-- re-entrant, and a second success would look like a claim that was won.
-- $1 int4          lock class
-- $2 text          lock keys, as an array's text: see sql.array_text
-- returns          one row: the keys that were won
-- locks            session-level advisory locks (I3, I8: nothing is written)
SELECT coalesce(array_agg(wanted.lock_key) FILTER (WHERE pg_try_advisory_lock($1::int4, wanted.lock_key)), '{}') AS won
FROM unnest($2::text::int4[]) AS wanted (lock_key)

-- name: release
-- $1 int4          lock class
-- $2 text          lock keys, as an array's text
-- returns          how many were not held: anything but 0 means the session is not what we think it is
SELECT count(*) FILTER (WHERE NOT pg_advisory_unlock($1::int4, held.lock_key)) AS lost
FROM unnest($2::text::int4[]) AS held (lock_key)

-- name: register
-- Add the row of a running daemon, locked before it can be seen: a row whose lock is free is a dead daemon's (I9).
-- $1 int4          lock class
-- $2 int4, $3 text, $4 text, $5 text, $6 jsonb    pid, host, version, silo mode, outboxes
-- returns          id
WITH registered AS (
    INSERT INTO {schema}.worker (pid, host, version, silo_mode, outboxes)
    VALUES ($2::int4, $3::text, $4::text, $5::text, $6::jsonb)
    RETURNING id
)
SELECT id, pg_try_advisory_lock($1::int4, id) AS locked FROM registered

-- name: deregister
-- Delete the row, then (the session closes) the lock goes: in that order it never looks like a death.
-- $1 int4          id
DELETE FROM {schema}.worker WHERE id = $1::int4

-- name: mark_dead
-- Whoever finds the row of a daemon whose lock is free marks its death. An exit deletes the row before it unlocks,
-- so this update then finds no row.
-- $1 int4          lock class
-- returns          id, pid, host of each
UPDATE {schema}.worker AS w
SET died_at = now()
WHERE w.died_at IS NULL
    AND NOT EXISTS (
        SELECT
        FROM pg_locks AS l
        WHERE l.locktype = 'advisory'
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.classid::int8 = $1::int4
            AND l.objid::int8 = w.id
            AND l.objsubid = 2
    )
RETURNING w.id, w.pid, w.host

-- name: recently_died
-- $1 interval      how recently
-- returns          whether any daemon died so recently
SELECT EXISTS (SELECT FROM {schema}.worker WHERE died_at > now() - $1::interval) AS died

-- name: purge_dead
-- $1 interval      keep rows of the dead for this long
DELETE FROM {schema}.worker WHERE died_at < now() - $1::interval

-- name: living
-- $1 int4          own id, left out
-- returns          id, pid, host, outboxes, silo_mode of every daemon that is not known to be dead
SELECT id, pid, host, outboxes, silo_mode FROM {schema}.worker WHERE died_at IS NULL AND id <> $1::int4

-- name: lock_once
-- $1 int4          lock class
-- $2 text          what this run is about
-- returns          whether no other run of the same is under way
SELECT pg_try_advisory_lock($1::int4, hashtext($2::text)) AS won

-- name: listen_check
-- Send a notification to ourselves: a listener that hears nothing is reopened.
-- $1 text          channel
SELECT pg_notify($1::text, '')
