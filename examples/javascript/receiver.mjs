// A receiver of webhooks with nothing but what comes with Node: verifies each, and keeps each event once.

import { appendFileSync, existsSync, fsyncSync, openSync, readFileSync, truncateSync } from "node:fs";
import { createServer } from "node:http";

// The function that docs/delivery.md shows. In a program of your own, copy it, or use the library `standardwebhooks`.
import { verify } from "../verify/verify.mjs";

const LARGEST_BODY = 1024 * 1024;

/** Events in a file, a line each, so that an event and the note that it is there are written as one. With a database, do
 * what the event asks for in the same transaction as you keep its id. */
class Journal {
  constructor(path) {
    const bytes = existsSync(path) ? readFileSync(path) : Buffer.alloc(0);
    // What a crash left of a last line was never answered: that event comes again.
    const whole = bytes.lastIndexOf("\n") + 1;
    if (whole < bytes.length) truncateSync(path, whole);
    const lines = bytes.subarray(0, whole).toString().split("\n").slice(0, -1);
    this.ids = new Set(lines.map((line) => JSON.parse(line).id));
    this.file = openSync(path, "a");
  }

  /** Keeps an event unless it is there; whether it was new. It is on the disk when this returns. */
  keep(id, body) {
    if (this.ids.has(id)) return false;
    appendFileSync(this.file, `${JSON.stringify({ id, body })}\n`);
    fsyncSync(this.file);
    this.ids.add(id);
    return true;
  }
}

/** A request's body, unless it is too large. */
async function read(request) {
  const pieces = [];
  let length = 0;
  for await (const piece of request) {
    length += piece.length;
    if (length > LARGEST_BODY) return undefined;
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

function take(headers, body) {
  if (body === undefined) return 413;
  if (!verify(secret, headers, body)) return 401;
  if (journal.keep(headers["webhook-id"], body.toString())) console.log(body.toString());
  // Only now it is safe with us. A repeat is success, too.
  return 204;
}

const [port = "9000", path = "events.ndjson"] = process.argv.slice(2);
const secret = process.env.TRIGGERS_WEBHOOK_SECRET;
if (!secret) throw new Error("TRIGGERS_WEBHOOK_SECRET must be the subscription's secret");
const journal = new Journal(path);
const server = createServer(async (request, response) => {
  let body;
  try {
    body = await read(request);
  } catch {
    // Who sent it is gone.
    return response.destroy();
  }
  // Nothing is caught here: if the file cannot be written this process ends, and at its next start cuts off what is torn.
  response.writeHead(take(request.headers, body)).end();
});
server.requestTimeout = 10_000;
server.listen(Number(port), "127.0.0.1");
