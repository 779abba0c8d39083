"""Verifies a webhook with the library of Standard Webhooks for Python, as its readers are told to."""

import base64
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

given = json.load(sys.stdin)
try:
    Webhook(given["secret"]).verify(base64.b64decode(given["body"]), given["headers"])
    print("valid")
# At a signature that has no version, the library fails to take it apart.
except (WebhookVerificationError, ValueError):
    print("invalid")
