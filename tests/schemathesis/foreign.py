"""A check for schemathesis: nothing in any answer is another workspace's.

HOLDFAST_FOREIGN names a file of JSON: a list of the ids, names and secrets that only another workspace's members know. What a
request itself says may come back in its answer. HOLDFAST_ALL_FOREIGN=1: every id in a path is the other workspace's, so no such
request may be answered as if it were allowed.
"""

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_plus

import schemathesis

FOREIGN = json.loads(Path(os.environ["HOLDFAST_FOREIGN"]).read_text())
ALL_FOREIGN = os.environ.get("HOLDFAST_ALL_FOREIGN") == "1"
# What a path may name that belongs to no workspace.
SHARED = {"kms_id", "family"}
# The public key of whatever app id is named, also of one that no app has yet: it tells nobody whether there is one.
PUBLIC = {"/api/v1/kms/{kms_id}/pubkey/{app_id}"}


@schemathesis.check
def nothing_foreign(ctx, response, case):
    if case.path in PUBLIC:
        return
    body = response.request.body or b""
    asked = unquote_plus(response.request.url) + (body if isinstance(body, str) else body.decode(errors="replace"))
    headers = "\n".join(value for values in response.headers.values() for value in values)
    told = response.content.decode(errors="replace") + headers
    for text in FOREIGN:
        assert text not in told or text in asked, f"the answer holds {text!r}, which is another workspace's"
    named = set(re.findall(r"{(\w+)}", case.path)) - SHARED
    allowed = ALL_FOREIGN and named and response.status_code < 400
    assert not allowed, f"{response.status_code} for a path that names what is another workspace's"
