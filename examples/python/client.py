"""A client of Triggers with nothing but what comes with Python: posts events, and works off the inbox."""

import argparse
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import uuid


class Refused(Exception):
    """An answer that trying again does not mend: the problem says what to mend instead."""


class Client:
    """Speaks to one deployment with one key. What may help is tried again; what cannot is raised."""

    def __init__(self, url: str, key: str, attempts: int = 8, timeout_seconds: float = 30):
        self.url, self.key = url.rstrip("/"), key
        self.attempts, self.timeout_seconds = attempts, timeout_seconds

    def post_event(self, event_type: str, payload, dedup_id: str | None = None) -> dict:
        """Posts an event, and answers what became of it.

        All attempts have one `dedup_id`: if an answer was lost, the event is not there twice. Give one of your own that
        you would give again after a crash (an order's number, say), and that is safe, too.
        """
        return self.call("POST", "/v1/events", {
            "type": event_type, "payload": payload, "dedup_id": dedup_id or str(uuid.uuid4()),
        })

    def work_off(self, handle) -> int:
        """Gives every undelivered event to `handle`, oldest first, and acknowledges those for which it returned.

        An event is given again if this process ends in between: `handle` must bear that. Answers how many there were.
        """
        done = 0
        while events := self.call("GET", "/v1/inbox?limit=100")["data"]:
            for event in events:
                handle(event)
                self.call("POST", f"/v1/inbox/{event['id']}/ack")
                done += 1
        return done

    def call(self, method: str, path: str, body=None):
        """One request, tried again where that may help: no answer, 408, 429, 500, 503. Never sooner than `Retry-After`."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.key}", "content-type": "application/json"},
        )
        for attempt in range(1, self.attempts + 1):
            # Twice as long each time, up to 30 seconds, and not all clients at the same moment.
            wait = min(30, 0.25 * 2**attempt) * random.uniform(0.5, 1)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                problem = error.read().decode(errors="replace")
                if error.code not in (408, 429, 500, 503):
                    raise Refused(f"{method} {path}: {error.code}: {problem}") from None
                wait = max(wait, int(error.headers.get("retry-after") or 0))
                last = f"{error.code}: {problem}"
            except OSError as error:
                last = str(error)
            if attempt < self.attempts:
                time.sleep(wait)
        raise TimeoutError(f"{method} {path}: {self.attempts} attempts, and at last {last}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    post = commands.add_parser("post", help="post an event")
    post.add_argument("type")
    post.add_argument("payload", type=json.loads, help="JSON")
    post.add_argument("--dedup-id")
    commands.add_parser("work", help="print what waits in the inbox as lines of JSON, and acknowledge it")
    given = parser.parse_args()
    client = Client(os.environ.get("TRIGGERS_URL", "http://127.0.0.1:8080"), os.environ["TRIGGERS_KEY"])
    if given.command == "post":
        print(json.dumps(client.post_event(given.type, given.payload, given.dedup_id)))
    else:
        client.work_off(lambda event: print(json.dumps(event), flush=True))


if __name__ == "__main__":
    try:
        main()
    except (Refused, TimeoutError) as error:
        sys.exit(str(error))
