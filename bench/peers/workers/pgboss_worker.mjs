// pg-boss: one queue, `work` with a batch handler. The first half of the settings is the instance's.

import { PgBoss } from 'pg-boss'
import { connection, main, ran, ready, timed } from './worker.mjs'

const QUEUE = 'bench'

async function boss(settings) {
  const started = new PgBoss({ ...connection, ...settings.instance })
  started.on('error', (error) => console.error(error))
  await started.start()
  return started
}

async function setup(settings) {
  const started = await boss(settings)
  await started.createQueue(QUEUE, settings.queue ?? {})
  await started.stop()
}

async function work(settings) {
  const started = await boss(settings)
  const handle = timed
    ? async (jobs) => jobs.forEach((job) => ran(job.data.n))
    : async () => {}
  await started.work(QUEUE, settings.work ?? {}, handle)
  process.once('SIGTERM', async () => {
    await started.stop({ graceful: true, timeout: 5000 })
    process.exit(0)
  })
  ready()
}

await main({ setup, work })
