// A client of Triggers with nothing but what comes with Node: posts events, and works off the inbox.

import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { pathToFileURL } from "node:url";

/** An answer that trying again does not mend: the problem says what to mend instead. */
export class Refused extends Error {}

/** Speaks to one deployment with one key. What may help is tried again; what cannot is thrown. */
export class Client {
  constructor(url, key, { attempts = 8, timeoutMs = 30_000 } = {}) {
    Object.assign(this, { url: url.replace(/\/+$/, ""), key, attempts, timeoutMs });
  }

  /** Posts an event, and answers what became of it.
   *
   * All attempts have one `dedup_id`: if an answer was lost, the event is not there twice. Give one of your own that you
   * would give again after a crash (an order's number, say), and that is safe, too. */
  postEvent(type, payload, dedupId = randomUUID()) {
    return this.call("POST", "/v1/events", { type, payload, dedup_id: dedupId });
  }

  /** Gives every undelivered event to `handle`, oldest first, and acknowledges those for which it was done.
   *
   * An event is given again if this process ends in between: `handle` must bear that. Answers how many there were. */
  async workOff(handle) {
    for (let done = 0; ; ) {
      const { data } = await this.call("GET", "/v1/inbox?limit=100");
      if (data.length === 0) return done;
      for (const event of data) {
        await handle(event);
        await this.call("POST", `/v1/inbox/${event.id}/ack`);
        done += 1;
      }
    }
  }

  /** One request, tried again where that may help: no answer, 408, 429, 500, 503. Never sooner than `Retry-After`. */
  async call(method, path, body) {
    let last;
    for (let attempt = 1; attempt <= this.attempts; attempt += 1) {
      // Twice as long each time, up to 30 seconds, and not all clients at the same moment.
      let wait = Math.min(30_000, 250 * 2 ** attempt) * (0.5 + Math.random() / 2);
      try {
        const answer = await fetch(this.url + path, {
          method,
          headers: { authorization: `Bearer ${this.key}`, "content-type": "application/json" },
          body: body === undefined ? undefined : JSON.stringify(body),
          signal: AbortSignal.timeout(this.timeoutMs),
        });
        const text = await answer.text();
        if (answer.ok) return JSON.parse(text);
        last = `${answer.status}: ${text}`;
        if (![408, 429, 500, 503].includes(answer.status)) throw new Refused(`${method} ${path}: ${last}`);
        wait = Math.max(wait, 1000 * Number(answer.headers.get("retry-after") ?? 0));
      } catch (error) {
        if (error instanceof Refused) throw error;
        last = String(error.cause ?? error);
      }
      if (attempt < this.attempts) await pause(wait);
    }
    throw new Error(`${method} ${path}: ${this.attempts} attempts, and at last ${last}`);
  }
}

const USAGE = "usage: client.mjs post TYPE PAYLOAD [DEDUP_ID] | work";

async function main([command, ...given]) {
  const client = new Client(process.env.TRIGGERS_URL ?? "http://127.0.0.1:8080", process.env.TRIGGERS_KEY);
  if (command === "post" && given.length >= 2) {
    const [type, payload, dedupId] = given;
    console.log(JSON.stringify(await client.postEvent(type, JSON.parse(payload), dedupId)));
  } else if (command === "work") {
    await client.workOff((event) => console.log(JSON.stringify(event)));
  } else {
    throw new Error(USAGE);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
