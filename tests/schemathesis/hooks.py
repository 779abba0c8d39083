"""What the document cannot say of valid requests, and what would only take time. Each with its reason."""

import json
import os
import urllib.error
import urllib.request

import schemathesis
from schemathesis import GenerationMode

# Keys are rotated and revoked by what is tried, among them the one that tries it: then another takes its place.
ENDS_KEYS = {"createKey", "listKeys", "rotateKey", "revokeKey", "compatGetKey", "compatRotateKey"}
_key = None


def ask(path, key, body=None):
    request = urllib.request.Request(
        os.environ["SCHEMATHESIS_URL"] + path,
        data=body and json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def key_to_be_ended():
    global _key
    try:
        if _key:
            ask("/v1/organization", _key)
            return _key
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
    organization = {"name": "whose keys are ended", "tier": "unlimited"}
    _key = ask("/v1/organizations", os.environ["SCHEMATHESIS_ADMIN_TOKEN"], organization)["key"]["key"]
    return _key


@schemathesis.auth(refresh_interval=None)
class Keys:
    """A key for what an organization may do, and the admin token for what operators may."""

    def get(self, case, context):
        operation = case.operation.definition.raw
        if any("adminToken" in one for one in operation["security"]):
            return os.environ["SCHEMATHESIS_ADMIN_TOKEN"]
        if operation["operationId"] in ENDS_KEYS:
            return key_to_be_ended()
        return os.environ["SCHEMATHESIS_KEY"]

    def set(self, case, data, context):
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = case.operation.definition.raw["operationId"]
    is_valid = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    query, headers, body = case.query or {}, case.headers or {}, case.body

    # Waiting for what does not come takes up to 30 seconds, and shows nothing.
    for given in (query, body if isinstance(body, dict) else {}):
        if is_valid:
            given.pop("wait_ms", None)

    # A stream goes on until it is told to end. This one is over before it begins.
    if operation == "streamEvents" and (is_valid or "until" not in query):
        query = case.query = {**query, "until": "1970-01-01T00:00:00Z"}

    if not is_valid:
        return
    # A header of no characters names no event.
    if operation == "streamEvents" and headers and not headers.get("Last-Event-ID", "-"):
        headers.pop("Last-Event-ID")
    # A cursor is good for the list alone that answered it: none that is made up is.
    query.pop("cursor", None)
    # A key ends in the future.
    if operation == "createKey" and isinstance(body, dict) and body.get("expires_at"):
        body["expires_at"] = "2999-12-31T23:59:59Z"
    # What ends before it begins is refused.
    if operation == "createReplay" and isinstance(body, dict) and body.get("since"):
        body.pop("until", None)
    # What a filter may say is a language of its own, which no schema can tell.
    if operation in ("createSubscription", "updateSubscription") and isinstance(body, dict) and body.get("filter") is not None:
        body["filter"] = "payload.amount > 100"
    # At most as long as the deployment keeps events: that is its own setting.
    if operation == "updateOrganization" and isinstance(body, dict) and body.get("retention_days") is not None:
        body["retention_days"] = 1
    # A URL is measured as it is sent: with a slash after its host.
    for name in ("url", "webhook_url"):
        if isinstance(body, dict) and len(str(body.get(name, ""))) == 2048:
            body[name] = body[name][:-1]
    # An event has one key: the header and the field are the same, and a CloudEvent or a batch has its own.
    if operation in ("postEvent", "compatPostEvent"):
        is_plain = case.media_type == "application/json"
        if not is_plain or (isinstance(body, dict) and body.get("dedup_id") is not None):
            headers.pop("Idempotency-Key", None)
        # With these the body is the data of a CloudEvent, whatever its type.
        for name in [name for name in headers if name.lower().startswith("ce-")]:
            headers.pop(name)
