// Whether the official SDK's own helpers believe deliveries of webhooks.
//
// stdin, a line each:   { "headers": { ... }, "body": "...", "secret": "whsec_..." }
// stdout, a line each:  { "event": { ... } }, or { "refused": "why" }

import { createInterface } from "node:readline";
import { parseWebhookEvent, verifyWebhookSignature } from "@phala/cloud/webhook";

function judge({ headers, body, secret }) {
  const [timestamp, signature] = ["x-webhook-timestamp", "x-webhook-signature"].map((name) => headers[name]);
  const verified = verifyWebhookSignature({ secret, timestamp, body, signature });
  try {
    const event = parseWebhookEvent({ headers, body, secret });
    return verified ? { event } : { refused: "parsed, but not verified" };
  } catch (error) {
    return { refused: verified ? `verified, but: ${error.message}` : String(error.message) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(judge(JSON.parse(line))));
}
