"""Prints requests that the CloudEvents SDK for Python makes, as JSON, with what is to become of their events.

Both of the SDK's interfaces are used: that of version 2, and that of version 1, which most programs still have.
"""

import base64
import json
from datetime import datetime, timedelta, timezone

from cloudevents.core.bindings import http as v2
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1 import conversion as v1
from cloudevents.v1.http import CloudEvent as CloudEvent1

TIME = datetime(2026, 1, 31, 12, 0, 0, 500000, tzinfo=timezone(timedelta(hours=1)))
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OBJECT = {"name": "Adä \U0001f980", "n": 1.5, "list": [None, True]}


def expected(attributes, payload):
    """What is stored of an event."""
    return {
        "type": attributes["type"],
        "source": attributes["source"],
        "dedup_id": f"cloudevent:{attributes['source']} {attributes['id']}",
        # Where none is given, the SDK adds the time at which it makes the event.
        "occurred_at": "2026-01-31T11:00:00.500Z" if "time" in attributes else None,
        "payload": payload,
    }


def attributes(identifier, **more):
    source = "https://shop.example/orders?a=1#b"
    return {"specversion": "1.0", "type": "com.example.placed", "source": source, "id": identifier, **more}


def request(mode, headers, body, events):
    body = body.encode() if isinstance(body, str) else body
    headers = {name: str(value) for name, value in headers.items()}
    return {"mode": mode, "headers": headers, "body": base64.b64encode(body).decode(), "events": events}


def as_base64(data):
    return base64.b64encode(data).decode()


# Attributes, the data, and the payload that it becomes.
CASES = [
    (attributes("json", datacontenttype="application/json", time=TIME), OBJECT, OBJECT),
    (attributes("suffix", datacontenttype="application/vnd.shop+json", subject="7", dataschema="shop:orders"), [1], [1]),
    (attributes("bytes", datacontenttype="application/octet-stream"), bytes(range(256)), as_base64(bytes(range(256)))),
    (attributes("text", datacontenttype="text/plain"), 'a "text"\nof two lines', 'a "text"\nof two lines'),
    (attributes("extended", datacontenttype="application/json", traceparent=TRACE, other="x", number=7), {"a": 1}, {"a": 1}),
    # Nothing says what it is: it is JSON.
    (attributes("untold"), {"b": 2}, {"b": 2}),
]
# What has to be encoded in a header, which version 1 does not do.
ENCODED = attributes('Café 100% "quoted" €\U0001f600', datacontenttype="application/json")


def of_version_2():
    form = JSONFormat()
    for given, data, payload in [*CASES, (ENCODED, OBJECT, OBJECT)]:
        event, becomes = CloudEvent(dict(given), data), expected(given, payload)
        for mode, write in [("structured", v2.to_structured), ("binary", v2.to_binary)]:
            message = write(event, form)
            yield request(f"v2 {mode}", message.headers, message.body, [becomes])
    # The SDK has no batches of its own: it writes each event of one.
    events = [form.write(CloudEvent(dict(given), data)) for given, data, _ in CASES]
    batch = b"[" + b",".join(events) + b"]"
    headers = {"content-type": "application/cloudevents-batch+json"}
    yield request("v2 batched", headers, batch, [expected(given, payload) for given, _, payload in CASES])


def of_version_1():
    for given, data, payload in CASES:
        given = {name: value.isoformat() if name == "time" else value for name, value in given.items()}
        given["id"] += " of version 1"
        event, becomes = CloudEvent1(dict(given), data), expected(given, payload)
        for mode, write in [("structured", v1.to_structured), ("binary", v1.to_binary)]:
            # As it writes JSON into a body by default, a text would be sent as JSON that says it is text.
            as_is = mode == "binary" and given.get("datacontenttype", "").startswith("text/")
            headers, body = write(event, data_marshaller=(lambda data: data) if as_is else None)
            yield request(f"v1 {mode}", headers, body, [becomes])


print(json.dumps([*of_version_2(), *of_version_1()]))
