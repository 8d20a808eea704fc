// Calls actions of the official SDK and says what each of them came to, until stdin ends.
//
// node call.mjs VERSION
// stdin, a line each:   ["getAppList", { "page": 1 }]
// stdout, a line each:  { "ok": true, "value": ... } or { "ok": false, "status": 404, "message": "..." }
//
// Each action is called twice, throwing and safe. The two must agree, or the call counts as failed. What is no action but
// a function of bytes (`verifyEnvEncryptPublicKey`) gets a list of arguments; those that begin with `hex:` are bytes.

import { createInterface } from "node:readline";
import { isDeepStrictEqual } from "node:util";
import * as cloud from "@phala/cloud";

const client = cloud.createClient({ version: process.argv[2] });

const plain = (value) => (value === undefined ? null : JSON.parse(JSON.stringify(value)));
const failed = (error) => ({ ok: false, status: error.status ?? null, message: String(error.message) });

async function call(name, params) {
  if (Array.isArray(params)) {
    const given = params.map((text) => (text.startsWith("hex:") ? Buffer.from(text.slice(4), "hex") : text));
    return { ok: true, value: plain(cloud[name](...given)) };
  }
  const safeName = `safe${name[0].toUpperCase()}${name.slice(1)}`;
  const thrown = await cloud[name](client, params).then((value) => ({ ok: true, value: plain(value) }), failed);
  const answer = await cloud[safeName](client, params);
  const safe = answer.success ? { ok: true, value: plain(answer.data) } : failed(answer.error);
  if (!isDeepStrictEqual(safe, thrown)) {
    return { ok: false, status: null, message: `${safeName} disagrees: ${JSON.stringify([thrown, safe])}` };
  }
  return thrown;
}

for await (const line of createInterface({ input: process.stdin })) {
  const [name, params] = JSON.parse(line);
  console.log(JSON.stringify(await call(name, params).catch(failed)));
}
