"""Every method of the official Python SDK against a server, throwing and safe.

python every_method.py VERSION sync|async
stdout: one JSON document, {"called": [...], "not_routed": [...], "problems": [...]}; exit code 1 with a problem.

The one rule: the methods of the client class are enumerated. One that is neither called here nor named below with the
reason why not is a problem, so a new version of the SDK cannot bring a method that nobody looked at.
"""

import asyncio
import inspect
import json
import os
import re
import sys
import time
import traceback
import urllib.request
from urllib.parse import urljoin

import phala_cloud
from phala_cloud import models

# Methods that are not called, with the reason.
EXCLUDED = {
    "add_compose_hash": "talks to a chain itself",
    "deploy_app_auth": "talks to a chain itself",
    "check_app_cvms_is_allowed": "asks the server about a chain; this server's KMS is off any",
    "check_app_is_allowed": "asks the server about a chain; this server's KMS is off any",
    "check_cvm_is_allowed": "asks the server about a chain; this server's KMS is off any",
    "get_kms_on_chain_detail": "asks the server about a chain; this server's KMS is off any",
    "get_app_attestation": "later: attestation",
}

# Methods below the actions: every action goes through them.
PLUMBING = {"aclose", "close", "get", "post", "request", "request_full", "safe", "with_version"}

# Called as soon as the server's OpenAPI document has the route.
NOT_ROUTED_YET = {
    "create_ssh_key": "post /api/v1/user/ssh-keys",
    "delete_ssh_key": "delete /api/v1/user/ssh-keys/{}",
    "import_github_profile_ssh_keys": "post /api/v1/user/ssh-keys/github-profile",
    "list_ssh_keys": "get /api/v1/user/ssh-keys",
    "sync_github_ssh_keys": "post /api/v1/user/ssh-keys/github-sync",
}

# What this SDK refuses at a version, whatever an honest server says; the part of its complaint that shows it is this.
OWN_FAULTS = {
    # A detail's id is `cvm_...` since 2026-01-21, which the TypeScript SDK and the command line insist on.
    ("get_cvm_info", "2026-01-21"): r"\nid\n +Input should be a valid integer",
    # It wants the object of a list here; the API and the TypeScript SDK have the one that a start is answered with.
    ("create_app_instance", "2026-01-21"): r"\nid\n +Input should be a valid string",
}

NOBODY = "00000000-0000-4000-8000-000000000000"
VERSION, KIND = sys.argv[1], sys.argv[2]

client_class = phala_cloud.PhalaCloud if KIND == "sync" else phala_cloud.AsyncPhalaCloud
loop = asyncio.new_event_loop()
client = client_class(version=VERSION)
called, not_routed, problems = set(), set(), []


def compose(tag):
    return f'services:\n  app:\n    image: hello:{tag}\n    ports: ["8080:80"]\n'


def check(condition, what):
    if not condition:
        problems.append(what)


def same(one, two, what):
    check(one == two, f"{what}: {one!r} is not {two!r}")


def finished(value):
    return loop.run_until_complete(value) if inspect.isawaitable(value) else value


def why(error):
    return f"{type(error).__name__} {getattr(error, 'status_code', '')} {error}"


def plain(value):
    """What a model holds, as dicts and lists."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value.model_dump() if hasattr(value, "model_dump") else value


def keys(value):
    value = plain(value)
    return sorted(value) if isinstance(value, dict) else type(value).__name__


def find_routes():
    with urllib.request.urlopen(urljoin(client.config.base_url, "/openapi/phala.json")) as answer:
        paths = json.load(answer)["paths"]
    return {f"{method} {re.sub('{[^}]*}', '{}', path)}" for path, methods in paths.items() for method in methods}


ROUTES = find_routes()


def both(name, params=None, settle=lambda: None):
    """Calls both forms; answers what the throwing one came to. `params` is what both get, or makes it from 1 and 2."""
    route = NOT_ROUTED_YET.get(name)
    if route and route not in ROUTES:
        not_routed.add(name)
        return None
    called.add(name)

    def given(n):
        value = params(n) if callable(params) else params
        return [] if value is None else [value]

    thrown = None
    fault = OWN_FAULTS.get((name, VERSION))
    try:
        thrown = plain(finished(getattr(client, name)(*given(1))))
        check(not fault, f"{name}: the SDK takes it after all")
    except Exception as error:  # whatever it is, the SDK did not take the answer
        check(fault and re.search(fault, str(error)), f"{name} {given(1)}: {why(error)}")
    settle()
    # The function of that name, where there is one: it is exported beside the method.
    function = getattr(phala_cloud, f"safe_{name}", None)
    safe = function(client, *given(2)) if function else getattr(client, f"safe_{name}")(*given(2))
    safe = finished(safe)
    settle()
    if not safe.ok:
        check(fault and re.search(fault, str(safe.error)), f"safe_{name} {given(2)}: {why(safe.error)}")
    elif thrown is not None:
        same(keys(safe.data), keys(thrown), f"{name}: keys of both forms")
    last = given(2)[0] if given(2) else {}
    if isinstance(last, dict) and "id" in last:
        refused(name, {**last, "id": NOBODY})
    return thrown


def refused(name, params):
    """A CVM that is not there: both forms say so with the documented code, in the SDK's own class."""

    def judge(form, error):
        right = isinstance(error, phala_cloud.ResourceError) and error.status_code == 404
        code = "ERR-03-008" if name == "replicate_cvm" else "ERR-03-001"
        check(right and error.error_code == code, f"{form} of a CVM that is not there: {why(error)}")

    try:
        answer = finished(getattr(client, name)(params))
        problems.append(f"{name} of a CVM that is not there: {answer}")
    except Exception as error:
        judge(name, error)
    safe = finished(getattr(client, f"safe_{name}")(params))
    check(not safe.ok, f"safe_{name} of a CVM that is not there succeeded")
    judge(f"safe_{name}", safe.error)


def request(method, path, **more):
    """Any request, in the newest version; the answer's body, whatever its status."""
    headers = {"X-Phala-Version": "2026-06-23"}
    return finished(client.request_full(method, path, headers=headers, **more))["data"]


def settled(cvm_id):
    """Waits until no operation holds the CVM; answers its status."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if request("GET", f"/cvms/{cvm_id}/operation-status")["status"] == "idle":
            return request("GET", f"/cvms/{cvm_id}/state")["status"]
        time.sleep(0.05)
    raise TimeoutError(f"{cvm_id} did not settle")


def encrypted(public_key, text):
    """The SDK leaves this to a package that is not installed here; see requirements.txt. What stands for it is hex of the
    right form, which the server cannot look into."""
    del public_key
    return (b"\x01" * 44 + text.encode() + b"\x02" * 16).hex()


def deploy(name):
    ask = {"name": name, "compose_file": {"docker_compose_file": compose(1), "allowed_envs": ["A"]}}
    ask["instance_type"] = "tdx.small"
    provisioned = both("provision_cvm", ask)
    app_id, compose_hash = provisioned["app_id"], provisioned["compose_hash"]
    blob = encrypted(provisioned["app_env_encrypt_pubkey"], "1")
    cvm = both("commit_cvm_provision", {"app_id": app_id, "compose_hash": compose_hash, "encrypted_env": blob})
    same(type(cvm["id"]), int if VERSION == "2026-01-21" else str, "the type of a new CVM's id")
    same(cvm["app_id"], app_id, "the commit's app id")
    return {"id": cvm["vm_uuid"], "app": app_id, "key": provisioned["app_env_encrypt_pubkey"]}


def account():
    both("get_current_user")
    both("get_available_nodes")
    both("get_cvm_create_resources")
    families = both("list_all_instance_type_families")
    both("list_family_instance_types", {"family": families["result"][0]["name"]})
    slug = both("list_workspaces", {"limit": 10})["data"][0]["slug"]
    both("get_workspace", slug)
    both("get_workspace_nodes", {"teamSlug": slug, "page": 1, "pageSize": 10})
    both("get_workspace_quotas", {"teamSlug": slug})
    both("get_os_images", {"page": 1, "page_size": 100, "is_dev": False})
    for method in ("safe_request_method", "safe_request_full"):
        called.add(method)
        check(finished(getattr(client, method)("GET", "/auth/me")).ok, method)


def ssh_keys():
    import base64

    def key(n):
        blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes([n]) * 32
        return f"ssh-ed25519 {base64.b64encode(blob).decode()} test"

    made = both("create_ssh_key", lambda n: {"name": f"key-{n}", "public_key": key(n)})
    listed = both("list_ssh_keys")
    both("delete_ssh_key", lambda n: {"keyId": str(listed[n - 1]["id"]) if made else ""})
    # What the test that started the server serves as GitHub has one profile, with two keys.
    imported = both("import_github_profile_ssh_keys", {"github_username": "octocat"})
    same((imported["keys_added"], imported["keys_skipped"]), (2, 0), "keys of a profile")
    synced = both("sync_github_ssh_keys")
    same((synced["keys_updated"], synced["keys_removed"]), (2, 0), "keys of a profile again")


def kms(cvm):
    nodes = both("get_kms_list", {"page": 1, "page_size": 10})
    both("get_kms_info", {"kms_id": nodes["items"][0]["id"]})
    contracts = both("list_kms_contracts")
    same(contracts["items"][0]["contract_address"], "phala", "the address of a KMS off any chain")
    for name in (contracts["items"][0]["slug"], contracts["items"][0]["id"]):
        both("get_kms_contract", name)
        both("list_kms_contract_nodes", name)
    both("next_app_ids", {"counts": 20})
    key = both("get_app_env_encrypt_pub_key", {"kms": "phala", "app_id": cvm["app"]})
    same(key["public_key"], cvm["key"], "the key of the app")
    same(sorted(key), ["public_key", "signature"], "the parts of a signed key")


def reads(cvm):
    cvm_id = {"id": cvm["id"]}
    both("get_cvm_info", cvm_id)
    detail = models.CvmInfoDetailV20260121 if VERSION == "2026-01-21" else models.CvmInfoDetailV20260522
    headers = {"X-Phala-Version": VERSION}
    info = detail.model_validate(finished(client.request_full("GET", f"/cvms/{cvm['id']}", headers=headers))["data"])
    forms = [cvm["id"], cvm["id"].replace("-", ""), cvm["app"], f"app_{cvm['app']}", info.instance_id, info.id, info.name]
    for form in forms:
        state = plain(finished(client.get_cvm_state({"cvm_id": form})))
        same(state["name"], info.name, f"the CVM by {form}")
    both("get_cvm_list", {"page": 1, "page_size": 10})
    both("get_cvm_list")
    file = both("get_cvm_compose_file", cvm_id)
    same(file["docker_compose_file"], compose(1), "the compose file in app-compose.json")
    same(both("get_cvm_docker_compose", cvm_id), compose(1), "docker-compose.yml")
    both("get_cvm_containers_stats", cvm_id)
    both("get_cvm_stats", cvm_id)
    both("get_cvm_network", cvm_id)
    both("get_cvm_attestation", cvm_id)
    both("get_cvm_user_config", cvm_id)
    both("get_available_os_images", cvm_id)
    both("get_cvm_state", cvm_id)
    batch = both("get_cvm_status_batch", {"vmUuids": [cvm["id"], NOBODY]})
    same(list(batch), [cvm["id"]], "the ids of a batch")


def apps(cvm):
    app = {"appId": cvm["app"]}
    listed = both("get_app_list", {"page": 1, "page_size": 50, "status": ["running", "stopped"]})
    whole = models.DstackAppListResponseV20260121 if VERSION == "2026-01-21" else models.DstackAppListResponseV20260522
    same(whole.model_validate(listed).total, 1, "apps in the list")
    both("get_app_filter_options")
    both("get_app_info", app)
    both("get_app_cvms", app)
    both("get_app_device_allowlist", app)
    revisions = both("get_app_revisions", {**app, "page": 1, "page_size": 10})["revisions"]
    for raw in (None, False, True):
        revision = revisions[0]["revision_id"]
        both("get_app_revision_detail", {**app, "revisionId": revision, "rawComposeFile": raw})


def updates(cvm):
    cvm_id = {"id": cvm["id"]}

    def settle():
        same(settled(cvm["id"]), "running", "the status after an update")

    def env(n):
        return {**cvm_id, "encrypted_env": encrypted(cvm["key"], f"value {n}"), "env_keys": ["A"]}

    same(both("update_cvm_envs", env, settle)["status"], "in_progress", "the answer to new env values")
    both("update_docker_compose", lambda n: {**cvm_id, "docker_compose_file": compose(10 + n)}, settle)
    both("update_pre_launch_script", lambda n: {**cvm_id, "pre_launch_script": f"echo {n}"}, settle)
    same(both("get_cvm_pre_launch_script", cvm_id), "echo 2", "the pre-launch script")
    file = plain(finished(client.get_cvm_compose_file(cvm_id)))
    hashes = []
    for n in (1, 2):
        file["docker_compose_file"] = compose(20 + n)
        provisioned = both("provision_cvm_compose_file_update", {**cvm_id, "app_compose": dict(file)})
        hashes.append(provisioned["compose_hash"])
    both("commit_cvm_compose_file_update", lambda n: {**cvm_id, "compose_hash": hashes[n - 1]}, settle)
    now = plain(finished(client.get_cvm_compose_file(cvm_id)))
    same(now["docker_compose_file"], compose(22), "the compose file after a commit")

    def patch(n):
        return {**cvm_id, "docker_compose_file": compose(30 + n), "public_logs": n == 1}

    patched = both("patch_cvm", patch, settle)
    check(not patched["requires_on_chain_hash"] and patched["correlation_id"], f"a patch: {patched}")
    # This one sends its whole numbers as floats.
    both("update_cvm_resources", lambda n: {**cvm_id, "vcpu": 3 - n, "memory": 1024 * n}, settle)

    resource = request("GET", f"/cvms/{cvm['id']}")["resource"]
    same((resource["vcpu"], resource["memory_in_gb"]), (1, 2), "the size after a resize")
    both("update_cvm_visibility", lambda n: {**cvm_id, "public_sysinfo": n == 1, "public_logs": True}, settle)
    images = plain(finished(client.get_available_os_images(cvm_id)))
    name = next(one["name"] for image in images for one in (image["prod"], image["dev"]) if one)
    both("update_os_image", {**cvm_id, "os_image_name": name}, settle)
    # Two phases are for apps on a chain: refused, and said so in the SDK's own words.
    called.add("confirm_cvm_patch")
    refusal = finished(client.safe_confirm_cvm_patch({**cvm_id, "composeHash": "00", "transactionHash": "0x00"}))
    check(isinstance(refusal.error, phala_cloud.ResourceError), f"a confirmation: {refusal}")


def power(cvm):
    cvm_id = {"id": cvm["id"]}

    def back(verb):
        def settle():
            settled(cvm["id"])
            request("POST", f"/cvms/{cvm['id']}/{verb}")
            settled(cvm["id"])

        return settle

    whole = int if VERSION == "2026-01-21" else str
    restarting = both("restart_cvm", lambda n: {**cvm_id, "force": n == 1}, lambda: settled(cvm["id"]))
    same((restarting["status"], type(restarting["id"])), ("restarting", whole), "a restart's answer")
    stopping = both("stop_cvm", cvm_id, back("start"))
    same((stopping["status"], type(stopping["id"])), ("stopping", whole), "a stop's answer")
    shutting = both("shutdown_cvm", cvm_id, back("start"))
    if shutting:
        same((shutting["status"], type(shutting["id"])), ("shutting_down", whole), "a shutdown's answer")
    request("POST", f"/cvms/{cvm['id']}/stop")
    settled(cvm["id"])
    starting = both("start_cvm", cvm_id, back("stop"))
    same((starting["status"], type(starting["id"])), ("starting", whole), "a start's answer")
    conflict = finished(client.safe_stop_cvm(cvm_id)).error
    same(getattr(conflict, "status_code", None), 409, "a second stop")
    request("POST", f"/cvms/{cvm['id']}/start")
    settled(cvm["id"])


def copies(cvm):
    both("create_app_instance", {"appId": cvm["app"]})
    both("replicate_cvm", {"id": cvm["id"]})
    both("refresh_cvm_instance_id", {"id": cvm["id"]})
    both("refresh_cvm_instance_ids", {"running_only": True, "limit": 100, "dry_run": True})
    every = [one["vm_uuid"] for one in request("GET", f"/apps/{cvm['app']}/cvms")]
    check(len(every) >= 3, f"CVMs of the app: {every}")
    for one in every:
        settled(one)
    both("delete_cvm", lambda n: {"id": every[n - 1]})


def watch(cvm):
    called.add("watch_cvm_state")
    asked = {"id": cvm["id"], "target": "running", "max_retries": 0}
    # Where it takes the function of that name, so that both are called.
    last = plain(finished(phala_cloud.watch_cvm_state(client, asked)))
    same((last["status"], last["target"]), ("running", "running"), "a watch")
    try:
        answer = finished(client.watch_cvm_state({**asked, "id": NOBODY}))
        problems.append(f"a watch of nobody: {answer}")
    except Exception as error:
        same(getattr(getattr(error, "response", None), "status_code", None), 404, "a watch of nobody")


def enumerate_methods():
    methods = {name for name in dir(client_class) if not name.startswith("_") and callable(getattr(client_class, name))}
    plain_names = {name for name in methods if not (name.startswith("safe_") and name[5:] in methods)}
    for name in sorted(plain_names):
        places = [name in place for place in (called, not_routed, EXCLUDED, PLUMBING)]
        if name in ("safe_request_method", "safe_request_full"):
            places = [name in called]
        check(sum(places) == 1, f"{name}: called, not routed, excluded, plumbing: {places}")
    for name in EXCLUDED:
        check(name in methods, f"{name} is no method any more")
    for name in phala_cloud.actions.__all__:
        check(name in methods, f"the function {name} has no method")


try:
    same(phala_cloud.DEFAULT_API_VERSION, "2026-06-23", "the SDK's default version")
    account()
    ssh_keys()
    made = deploy("methods-one")
    watch(made)
    same(settled(made["id"]), "running", "the status after a deployment")
    kms(made)
    reads(made)
    apps(made)
    updates(made)
    power(made)
    copies(made)
    enumerate_methods()
except Exception:
    problems.append(f"the script stopped: {traceback.format_exc()}")
print(json.dumps({"called": sorted(called), "not_routed": sorted(not_routed), "problems": problems}, indent=1))
sys.stdout.flush()
os._exit(1 if problems else 0)
