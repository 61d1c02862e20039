// Graphile Worker: `run` with a task list, everything else as its preset has it.

import { Logger, run, runMigrations } from 'graphile-worker'
import pg from 'pg'
import { connection, main, ran, ready, timed } from './worker.mjs'

// Its own logger writes two lines a job; quiet here, as `NO_LOG_SUCCESS` makes it in its own performance test.
const logger = new Logger(() => (level, message) => {
  if (level === 'error') console.error(message)
})

const nothing = async () => {}
const tell = async ({ n }) => ran(n)

async function setup() {
  const pgPool = new pg.Pool(connection)
  await runMigrations({ pgPool, logger })
  await pgPool.end()
}

async function work({ ...worker }) {
  const pgPool = new pg.Pool({ ...connection, max: worker.maxPoolSize ?? 10 })
  pgPool.on('error', () => {})
  pgPool.on('connect', (client) => client.on('error', () => {})) // it asks for both
  const runner = await run({
    pgPool,
    logger,
    preset: { worker: { ...worker, logger } },
    taskList: { bench: timed ? tell : nothing },
  })
  ready()
  await runner.promise
  await pgPool.end()
}

await main({ setup, work })
