"""A receiver of webhooks with nothing but what comes with Python: verifies each, and does what it asks for once."""

import argparse
import os
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

# The function that docs/delivery.md shows. In a program of your own, copy it, or use the library `standardwebhooks`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "verify"))
from verify import verify

LARGEST_BODY = 1024 * 1024


class Receiver(BaseHTTPRequestHandler):
    """Keeps every event in a table. What you do with one belongs into the same transaction as its id."""

    secret: str
    database: sqlite3.Connection
    # Who sends nothing holds nobody up for longer.
    timeout = 10

    def do_POST(self):
        length = int(self.headers.get("content-length") or 0)
        if length > LARGEST_BODY:
            return self.answer(413)
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not verify(self.secret, headers, body):
            return self.answer(401)
        # One transaction: either both the id and the work are there, or neither, and the event comes again.
        with self.database:
            sql = "INSERT INTO events (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING"
            new = self.database.execute(sql, (headers["webhook-id"], body.decode())).rowcount == 1
        if new:
            print(body.decode(), flush=True)
        # Only now it is safe with us. A repeat is success, too.
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Nothing for each request."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--database", default="events.sqlite")
    given = parser.parse_args()
    Receiver.secret = os.environ["TRIGGERS_WEBHOOK_SECRET"]
    Receiver.database = sqlite3.connect(given.database)
    Receiver.database.execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, body TEXT NOT NULL)")
    HTTPServer(("127.0.0.1", given.port), Receiver).serve_forever()


if __name__ == "__main__":
    main()
