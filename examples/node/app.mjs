// An application in Node: it places orders, each with its message in one transaction, and is told of them over HTTP.
import http from "node:http";
import pg from "pg";

const seen = new Set();
const wanted = 3;

// What others would be: an endpoint that is told of orders. It may be told twice of one, and knows them by their id.
const server = http.createServer((request, response) => {
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => {
    const event = JSON.parse(body);
    if (!seen.has(event.id)) {
      seen.add(event.id);
      console.log(`told of order ${event.order} of customer ${event.customer}: ${event.total}`);
    }
    response.writeHead(204).end();
    if (seen.size === wanted) finish();
  });
});

async function placeOrder(client, customer, total) {
  await client.query("BEGIN");
  try {
    const { rows } = await client.query("INSERT INTO orders (customer_id, total) VALUES ($1, $2) RETURNING id", [customer, total]);
    const order = rows[0].id;
    await client.query("SELECT outboxd.save('ORDER_PLACED', $1, $2, $3)", [customer, order, JSON.stringify({ order, total })]);
    await client.query("COMMIT");
    console.log(`placed order ${order}`);
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  }
}

const client = new pg.Client({ host: process.env.PGHOST, port: process.env.PGPORT, user: process.env.PGUSER, database: process.env.PGDATABASE });

async function finish() {
  await client.end();
  server.close();
  server.closeAllConnections();
  console.log("told of all of them");
}

server.listen(Number(process.env.PORT), "127.0.0.1", async () => {
  await client.connect();
  for (const [customer, total] of [[1, 10], [2, 20], [1, 30]]) await placeOrder(client, customer, total);
});
