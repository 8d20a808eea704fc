// Every action that the official SDK exports, against a server, in its throwing and in its safe form.
//
// node every_action.mjs VERSION
// stdout: one JSON document, { "called": [...], "not_routed": [...], "problems": [...] }; exit code 1 with a problem.
//
// The one rule: the package's exports are enumerated. A function that is neither called here nor named below with the
// reason why not is a problem, so a new version of the SDK cannot bring an action that nobody looked at.

import { createHash } from "node:crypto";
import * as cloud from "@phala/cloud";

// Actions that are not called, by reason.
const EXCLUDED = {
  "talks to a chain itself": [
    "addComposeHash", "addDevice", "checkComposeHashAllowed", "checkDeviceAllowed", "checkOnChainPrerequisites",
    "deployAppAuth", "getAllowedDevices", "removeDevice", "setAllowAnyDevice",
  ],
  "asks the server about a chain; this server's KMS is off any": [
    "checkAppCvmsIsAllowed", "checkAppIsAllowed", "checkCvmIsAllowed", "commitCvmUpdate", "getKmsOnChainDetail",
  ],
  "later: attestation": ["getAppAttestation"],
};

// Functions that send no request to a server: wallets, transactions, formatting, hashing, error classes.
const LOCAL = [
  "AuthError", "BusinessError", "MaxRetriesExceededError", "NetworkError", "PhalaCloudError", "RequestError",
  "ResourceError", "ServerError", "TransactionError", "UnknownError", "ValidationError", "WalletError",
  "WatchAbortedError", "addNetwork", "asHex", "autoCreateClients", "checkBalance", "checkNetworkStatus",
  "convertToHostname", "createBaseClient", "createClient", "createClientsFromBrowser", "createClientsFromPrivateKey",
  "createNetworkClients", "createTransactionTracker", "defineAction", "defineSimpleAction", "dumpAppCompose",
  "encryptEnvVars", "estimateTransactionGas", "executeBatchTransactions", "executeTransaction",
  "executeTransactionWithRetry", "extractNetworkClients", "formatErrorMessage", "formatStructuredError",
  "formatValidationErrors", "generateDefaultCvmName", "generateFallbackHostname", "getComposeHash", "getErrorMessage",
  "getValidationFields", "isAppIdConflictError", "isConflictError", "isValidHostname", "parseApiError", "parseEnv",
  "parseEnvVars", "preprocessAppCompose", "refineCvmId", "safeValidateActionParameters", "sortObject",
  "switchToNetwork", "validateActionParameters", "validateComposePayloadSize", "validateNetworkPrerequisites",
  "verifyEnvEncryptPublicKey", "waitForTransactionReceipt", "withComposeMethods",
];

// Called as soon as the server's OpenAPI document has the route.
const NOT_ROUTED_YET = {
  createSshKey: "post /api/v1/user/ssh-keys",
  deleteSshKey: "delete /api/v1/user/ssh-keys/{}",
  importGithubProfileSshKeys: "post /api/v1/user/ssh-keys/github-profile",
  listSshKeys: "get /api/v1/user/ssh-keys",
  syncGithubSshKeys: "post /api/v1/user/ssh-keys/github-sync",
};

const NOBODY = "00000000-0000-4000-8000-000000000000";
const compose = (tag) => `services:\n  app:\n    image: hello:${tag}\n    ports: ["8080:80"]\n`;

const version = process.argv[2];
const client = cloud.createClient({ version });
const called = new Set();
const notRouted = new Set();
const problems = [];

function check(condition, what) {
  if (!condition) problems.push(what);
}

const same = (one, two, what) =>
  check(JSON.stringify(one) === JSON.stringify(two), `${what}: ${JSON.stringify(one)} is not ${JSON.stringify(two)}`);

const safeName = (name) => `safe${name[0].toUpperCase()}${name.slice(1)}`;
const text = (value) => (JSON.stringify(value) ?? "nothing").slice(0, 300);
const why = (error) => `${error?.constructor?.name} ${error?.status ?? ""} ${error?.message}`;
const keys = (value) => (value && typeof value === "object" ? Object.keys(value).sort() : [typeof value]);

async function routes() {
  const url = new URL("/openapi/phala.json", client.config.baseURL);
  const document = await (await fetch(url)).json();
  const all = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path.replace(/\{[^}]*\}/g, "{}")}`));
  return new Set(all);
}

const routed = await routes();

/// Calls both forms; answers what the throwing one came to. `params` is what both get, or makes it from 1 and 2.
/// `between` and `after` bring the server back to where the next call is welcome.
async function both(name, params, settle = async () => {}) {
  const route = NOT_ROUTED_YET[name];
  if (route && !routed.has(route)) {
    notRouted.add(name);
    return undefined;
  }
  called.add(name);
  const given = (n) => (typeof params === "function" ? params(n) : params);
  let thrown;
  try {
    thrown = await cloud[name](client, given(1));
    await settle();
  } catch (error) {
    problems.push(`${name} ${text(given(1))}: ${why(error)}`);
    await settle();
  }
  const safe = await cloud[safeName(name)](client, given(2));
  await settle();
  if (!safe.success) {
    problems.push(`${safeName(name)} ${text(given(2))}: ${why(safe.error)}`);
  } else if (thrown !== undefined) {
    same(keys(safe.data), keys(thrown), `${name}: keys of both forms`);
  }
  const { id, cvmId } = given(2) ?? {};
  if (id ?? cvmId) await refused(name, { ...given(2), ...(id ? { id: NOBODY } : { cvmId: NOBODY }) });
  return thrown ?? safe.data;
}

/// A CVM that is not there: both forms say so with the documented code, in the SDK's own class.
async function refused(name, params) {
  const judge = (form, error) => {
    const code = name === "replicateCvm" ? "ERR-03-008" : "ERR-03-001";
    const right = error instanceof cloud.ResourceError && error.status === 404 && error.errorCode === code;
    check(right, `${form} of a CVM that is not there: ${why(error)} ${error?.errorCode}`);
  };
  await cloud[name](client, params).then(
    (value) => problems.push(`${name} of a CVM that is not there: ${text(value)}`),
    (error) => judge(name, error),
  );
  const safe = await cloud[safeName(name)](client, params);
  check(!safe.success, `${safeName(name)} of a CVM that is not there succeeded`);
  if (!safe.success) judge(safeName(name), safe.error);
}

/// Waits until no operation holds the CVM; answers its status.
async function settled(id) {
  for (let look = 0; look < 600; look++) {
    const status = await client.get(`/cvms/${id}/operation-status`).catch((error) => ({ error: why(error) }));
    const state = await client.get(`/cvms/${id}/state`);
    if (!JSON.stringify(status).includes("in_progress")) return state.status;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${id} did not settle`);
}

async function deploy(name, extra = {}) {
  const ask = { name, compose_file: { docker_compose_file: compose(1), allowed_envs: ["A"] }, ...extra };
  const provisioned = await both("provisionCvm", ask);
  const encrypted_env = await cloud.encryptEnvVars([{ key: "A", value: "1" }], provisioned.app_env_encrypt_pubkey);
  const { app_id, compose_hash } = provisioned;
  const commit = { app_id, compose_hash, encrypted_env };
  const cvm = await both("commitCvmProvision", commit);
  same(cvm.app_id, app_id, "the commit's app id");
  return { id: cvm.vm_uuid, number: cvm.id, app: app_id, hash: compose_hash, key: provisioned.app_env_encrypt_pubkey };
}

async function account() {
  const user = await both("getCurrentUser");
  await both("getAvailableNodes");
  const families = await both("listAllInstanceTypeFamilies");
  await both("listFamilyInstanceTypes", { family: families.result[0].name });
  const workspaces = await both("listWorkspaces", { limit: 10 });
  const slug = workspaces.data[0].slug;
  if (version !== "2025-10-28") same(user.workspace.slug, slug, "the workspace's slug");
  await both("getWorkspace", slug);
  await both("getWorkspaceNodes", { teamSlug: slug, page: 1, pageSize: 10 });
  await both("getWorkspaceQuotas", { teamSlug: slug });
  await both("getOsImages", { page: 1, page_size: 100, is_dev: false });
  await both("getOsImages");
}

/// Errors of every other kind, by the SDK's own classes.
async function errors() {
  const raised = (promise) => promise.then((value) => ({ message: `an answer: ${text(value)}` }), (error) => error);
  const invalid = await raised(client.get("/cvms/paginated?page=0"));
  check(invalid instanceof cloud.ValidationError && invalid.status === 422, `a value that does not fit: ${why(invalid)}`);
  const fields = cloud.getValidationFields?.(invalid) ?? [];
  check(text(fields).includes("page"), `the field that does not fit: ${text(fields)}`);
  const stranger = cloud.createClient({ version, apiKey: "phak_wrong" });
  const refusal = await raised(cloud.getCurrentUser(stranger));
  const known = refusal instanceof cloud.AuthError || refusal instanceof cloud.ResourceError;
  check(known && refusal.status === 401, `a wrong key: ${why(refusal)}`);
}

async function sshKeys() {
  // Of no key that exists: 32 zero bytes are no point anybody has the secret of.
  const blob = Buffer.concat([Buffer.from([0, 0, 0, 11]), Buffer.from("ssh-ed25519"), Buffer.from([0, 0, 0, 32])]);
  const key = (n) => `ssh-ed25519 ${Buffer.concat([blob, Buffer.alloc(32, n)]).toString("base64")} test`;
  await both("createSshKey", (n) => ({ name: `key-${n}`, public_key: key(n) }));
  const listed = await both("listSshKeys");
  await both("deleteSshKey", (n) => ({ keyId: String(listed?.[n - 1]?.id) }));
  // What the test that started the server serves as GitHub has one profile, with two keys.
  const imported = await both("importGithubProfileSshKeys", { github_username: "octocat" });
  same([imported?.keys_added, imported?.keys_skipped], [2, 0], "keys of a profile");
  const synced = await both("syncGithubSshKeys");
  same([synced?.keys_updated, synced?.keys_removed], [2, 0], "keys of a profile again");
}

async function kms(cvm) {
  const list = await both("getKmsList", { page: 1, page_size: 10 });
  await both("getKmsInfo", { kms_id: list.items[0].id });
  await both("nextAppIds", { counts: 20 });
  const key = await both("getAppEnvEncryptPubKey", { kms: "phala", app_id: cvm.app });
  same(key.public_key, cvm.key, "the key of the app");
  const bytes = (hex) => Buffer.from(hex, "hex");
  check(cloud.verifyEnvEncryptPublicKey(bytes(key.public_key), bytes(key.signature), cvm.app), "the key's signature");
}

async function reads(cvm) {
  const { id } = cvm;
  const info = await both("getCvmInfo", { id });
  const old = version === "2025-10-28";
  same(typeof info.id, old ? "number" : "string", "the type of a detail's id");
  // The SDK makes `app_...` of 40 digits, whichever of the two they are.
  const instance_id = `instance_${info.instance_id.replace("instance_", "")}`;
  for (const form of [{ uuid: id }, { app_id: cvm.app }, { instance_id }, { name: info.name }]) {
    const found = await cloud.getCvmInfo(client, form).catch((error) => ({ vm_uuid: why(error) }));
    same(found.vm_uuid, info.vm_uuid, `the CVM by ${text(form)}`);
  }
  await both("getCvmList", { page: 1, page_size: 10 });
  const file = await both("getCvmComposeFile", { id });
  same(file.docker_compose_file, compose(1), "the compose file in app-compose.json");
  const raw = await (await fetch(`${client.config.baseURL}/cvms/${id}/compose_file?raw=true`,
    { headers: { "X-API-Key": client.config.apiKey } })).text();
  same(createHash("sha256").update(raw).digest("hex"), cvm.hash, "sha256 of the raw bytes");
  same(cloud.getComposeHash(JSON.parse(raw)), cvm.hash, "the SDK's own hash of app-compose.json");
  same(await both("getCvmDockerCompose", { id }), compose(1), "docker-compose.yml");
  same(await both("getCvmPreLaunchScript", { id }), "", "the pre-launch script");
  await both("getCvmContainersStats", { id });
  await both("getCvmStats", { id });
  await both("getCvmNetwork", { id });
  await both("getCvmAttestation", { id });
  await both("getCvmUserConfig", { id });
  await both("getAvailableOsImages", { id });
  const state = await both("getCvmState", { id });
  check(!Object.values(state).includes(null), `a null in the state: ${text(state)}`);
  const asked = [id, id.replaceAll("-", "")];
  const batch = await both("getCvmStatusBatch", { vmUuids: [...asked, NOBODY] });
  same(Object.keys(batch).sort(), [...new Set(asked)].sort(), "the ids of a batch");
}

async function apps(cvm) {
  const appId = cvm.app;
  await both("getAppList", { page: 1, page_size: 50, search: "act", status: ["running", "stopped"] });
  await both("getAppFilterOptions");
  await both("getAppInfo", { appId });
  await both("getAppCvms", { appId });
  await both("getAppDeviceAllowlist", { appId });
  const { revisions } = await both("getAppRevisions", { appId, page: 1, page_size: 10 });
  for (const rawComposeFile of [false, true]) {
    await both("getAppRevisionDetail", { appId, revisionId: revisions[0].revision_id, rawComposeFile });
  }
}

async function updates(cvm) {
  const { id } = cvm;
  const settle = async () => same(await settled(id), "running", "the status after an update");
  const encrypted = (value) => cloud.encryptEnvVars([{ key: "A", value }], cvm.key);
  const env = [await encrypted("2"), await encrypted("3")];
  const accepted = await both("updateCvmEnvs", (n) => ({ id, encrypted_env: env[n - 1], env_keys: ["A"] }), settle);
  same(accepted?.status, "in_progress", "the answer to new env values");
  await both("updateDockerCompose", (n) => ({ id, docker_compose_file: compose(10 + n) }), settle);
  await both("updatePreLaunchScript", (n) => ({ id, pre_launch_script: `echo ${n}` }), settle);
  same(await cloud.getCvmPreLaunchScript(client, { id }), "echo 2", "the pre-launch script");
  const { getHash, toString, ...file } = await cloud.getCvmComposeFile(client, { id });
  const hashes = [];
  for (const n of [1, 2]) {
    const app_compose = { ...file, docker_compose_file: compose(20 + n) };
    hashes.push((await both("provisionCvmComposeFileUpdate", { id, app_compose })).compose_hash);
  }
  await both("commitCvmComposeFileUpdate", (n) => ({ id, compose_hash: hashes[n - 1] }), settle);
  const detail = await client.get(`/cvms/${id}/compose_file`);
  same(detail.docker_compose_file, compose(22), "the compose file after a commit");
  const patched = await both("patchCvm", (n) => ({ id, docker_compose_file: compose(30 + n), public_logs: n === 1 }),
    settle);
  check(patched?.requiresOnChainHash === false && patched?.correlationId, `a patch: ${text(patched)}`);
  await both("updateCvmResources", (n) => ({ id, vcpu: n === 1 ? 2 : 1, allow_restart: true }), settle);
  await both("updateCvmVisibility", (n) => ({ id, public_sysinfo: n === 1, public_logs: true }), settle);
  const images = await cloud.getAvailableOsImages(client, { id });
  const names = images.flatMap((image) => [image.prod?.name, image.dev?.name]).filter(Boolean);
  await both("updateOsImage", (n) => ({ id, os_image_name: names[n % names.length] }), settle);
  // Two phases are for apps on a chain: refused, and said so in the SDK's own words.
  const confirm = { id, composeHash: "00", transactionHash: "0x00" };
  called.add("confirmCvmPatch");
  const refusal = await cloud.safeConfirmCvmPatch(client, confirm);
  check(!refusal.success && refusal.error instanceof cloud.ResourceError, `a confirmation: ${text(refusal)}`);
  await cloud.confirmCvmPatch(client, confirm).then(
    (value) => problems.push(`a confirmation was taken: ${text(value)}`),
    (error) => check(error instanceof cloud.ResourceError, `a confirmation: ${why(error)}`),
  );
}

async function power(cvm) {
  const { id } = cvm;
  const stopped = async () => same(await settled(id), "stopped", "the status after a stop");
  const running = async () => same(await settled(id), "running", "the status after a start");
  const restarting = await both("restartCvm", (n) => ({ id, force: n === 1 }), running);
  same(restarting?.status, "restarting", "the status that a restart is answered with");
  const again = (verb) => async () => {
    await settled(id);
    await client.post(`/cvms/${id}/${verb}`).catch(() => {});
    await settled(id);
  };
  const stopping = await both("stopCvm", { id }, again("start"));
  same(stopping?.status, "stopping", "the status that a stop is answered with");
  const shutting = await both("shutdownCvm", { id }, again("start"));
  if (shutting) same(shutting.status, "shutting_down", "the status that a shutdown is answered with");
  await client.post(`/cvms/${id}/stop`);
  await stopped();
  const starting = await both("startCvm", { id }, again("stop"));
  same(starting?.status, "starting", "the status that a start is answered with");
  const conflict = await cloud.safeStopCvm(client, { id });
  check(!conflict.success && conflict.error.status === 409, `a second stop: ${text(conflict)}`);
  await client.post(`/cvms/${id}/start`);
  await running();
}

async function copies(cvm) {
  const made = [];
  const instance = await both("createAppInstance", { appId: cvm.app });
  made.push(instance?.vm_uuid);
  const replica = await both("replicateCvm", { id: cvm.id });
  if (replica) made.push(replica.vm_uuid);
  const all = (await cloud.getAppCvms(client, { appId: cvm.app })).map((one) => one.vm_uuid ?? one.hosted?.id);
  check(made.every((uuid) => uuid && uuid !== cvm.id), `further CVMs: ${text(made)}`);
  for (const one of await client.get(`/apps/${cvm.app}/cvms`, { headers: { "X-Phala-Version": "2026-01-21" } })) {
    await settled(one.vm_uuid);
  }
  check(all.length >= 3, `CVMs of the app: ${text(all)}`);
  await both("refreshCvmInstanceId", { id: cvm.id, overwrite: false, dry_run: false });
  await both("refreshCvmInstanceIds", { running_only: true, limit: 100, dry_run: true });
}

async function watch(cvm) {
  const { id } = cvm;
  called.add("watchCvmState");
  const events = [];
  const onEvent = (event) => events.push(event.type);
  const last = await cloud.watchCvmState(client, { id, target: "running", maxRetries: 1 }, { onEvent });
  same([last?.status, events.at(0), events.at(-1)], ["running", "state", "complete"], "a watch");
  const fails = async (params, options, name) => {
    const error = await cloud.watchCvmState(client, { target: "stopped", maxRetries: 1, ...params }, options).then(
      (value) => ({ name: `an answer, ${text(value)}` }), (error) => error);
    check(error.name === name || error.message.startsWith(name), `a watch that ends in ${name}: ${why(error)}`);
  };
  const abort = new AbortController();
  const aborting = { signal: abort.signal, onEvent: () => abort.abort() };
  await fails({ id }, aborting, "WatchAbortedError");
  await fails({ id: NOBODY }, {}, "HTTP 404");
  // The shortest time there is: 10 seconds.
  if (version === "2026-01-21") await fails({ id, timeout: 10 }, {}, "MaxRetriesExceededError");
}

async function deletes(cvm) {
  const list = await client.get(`/apps/${cvm.app}/cvms`, { headers: { "X-Phala-Version": "2026-01-21" } });
  const ids = list.map((one) => one.vm_uuid);
  await both("deleteCvm", (n) => ({ id: ids[n - 1] }));
}

function enumerate() {
  const functions = Object.keys(cloud).filter((name) => typeof cloud[name] === "function");
  const excluded = Object.values(EXCLUDED).flat();
  const isSafeForm = (name) => {
    const plain = name.startsWith("safe") ? name[4].toLowerCase() + name.slice(5) : "";
    return typeof cloud[plain] === "function" && !LOCAL.includes(name);
  };
  for (const name of functions.filter((name) => !isSafeForm(name))) {
    const places = [called.has(name), notRouted.has(name), excluded.includes(name), LOCAL.includes(name)];
    check(places.filter(Boolean).length === 1, `${name}: called, not routed, excluded, local: ${places}`);
    const action = typeof cloud[safeName(name)] === "function";
    check(!(action && LOCAL.includes(name)) || name === "validateActionParameters", `${name} is an action`);
  }
  for (const name of [...excluded, ...LOCAL]) check(functions.includes(name), `${name} is not exported any more`);
}

try {
  await account();
  await errors();
  await sshKeys();
  const cvm = await deploy("actions-one");
  await watch(cvm);
  same(await settled(cvm.id), "running", "the status after a deployment");
  await kms(cvm);
  await reads(cvm);
  await apps(cvm);
  await updates(cvm);
  await power(cvm);
  await copies(cvm);
  await deletes(cvm);
  enumerate();
} catch (error) {
  problems.push(`the script stopped: ${error?.stack ?? why(error)}`);
}
console.log(JSON.stringify({ called: [...called].sort(), not_routed: [...notRouted].sort(), problems }, null, 1));
process.exit(problems.length > 0 ? 1 : 0);
