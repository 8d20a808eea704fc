"""Whether the official SDK's own helpers believe deliveries of webhooks.

stdin, a line each:   { "headers": { ... }, "body": "...", "secret": "whsec_..." }
stdout, a line each:  { "event": { ... } }, or { "refused": "why" }
"""

import json
import sys

from phala_cloud.webhook import parse_webhook_event, verify_webhook_signature


def judge(headers, body, secret):
    timestamp, signature = headers["x-webhook-timestamp"], headers["x-webhook-signature"]
    verified = verify_webhook_signature(secret=secret, timestamp=timestamp, body=body, signature=signature)
    try:
        event = parse_webhook_event(headers=headers, body=body, secret=secret)
    except ValueError as error:
        return {"refused": f"verified, but: {error}" if verified else str(error)}
    names = ("id", "event", "version", "created_at", "workspace", "data")
    told = {name: getattr(event, name) for name in names}
    return {"event": told} if verified else {"refused": "parsed, but not verified"}


for line in sys.stdin:
    print(json.dumps(judge(**json.loads(line))), flush=True)
