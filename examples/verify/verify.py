"""Verifies a webhook by Standard Webhooks with the standard library alone (HMAC-SHA256, `v1`)."""

import base64
import hashlib
import hmac
import json
import sys
import time

TOLERANCE_SECONDS = 5 * 60


def verify(secret: str, headers: dict, body: bytes) -> bool:
    """Whether the webhook is from whoever has the secret, and was signed within the last minutes.

    `headers` by lower-case name; `body` exactly as it came.
    """
    try:
        message_id = headers["webhook-id"]
        timestamp = headers["webhook-timestamp"]
        # Bytes, for texts with more than ASCII in them cannot be compared.
        signatures = headers["webhook-signature"].encode().split(b" ")
        age = abs(time.time() - int(timestamp))
        signed = f"{message_id}.{timestamp}.".encode() + body
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (KeyError, ValueError, OverflowError):
        return False
    if age > TOLERANCE_SECONDS:
        return False
    expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    # While a secret is rotated there are two signatures: one that fits is enough.
    return any(hmac.compare_digest(signature, expected) for signature in signatures)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    fits = verify(given["secret"], given["headers"], base64.b64decode(given["body"]))
    print("valid" if fits else "invalid")
