// The same as worker.py, for Node.

export const timed = Boolean(process.env.BENCH_TIMED)

export const connection = {
  host: process.env.PGHOST,
  port: Number(process.env.PGPORT),
  user: process.env.PGUSER,
  database: process.env.PGDATABASE,
}

export function ready() {
  process.stdout.write('ready\n')
}

export function ran(number) {
  const now = process.hrtime.bigint()
  process.stdout.write(`ran ${number} ${now}\n`)
}

export async function main({ setup, work }) {
  const settings = JSON.parse(process.argv[3])
  await { setup, work }[process.argv[2]](settings)
}
