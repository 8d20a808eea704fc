// A real identity provider: the certified `oidc-provider`, with its own pages for signing in and consenting.
//
// stdin, one line:   { "port": 1, "client_id": "...", "client_secret": "...", "redirect_uri": "...",
//                      "accounts": { "<subject>": { "email": "...", "email_verified": true, ... } },
//                      "tls": null or { "key": "<PEM>", "cert": "<PEM>" } }
// stdout, a line each:  { "listening": "<issuer>" }, then { "issued": { ...the answer of the token endpoint... } }
//
// Its keys are made anew each time that it starts. It ends when its standard input does.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createServer as createSecureServer } from "node:https";
import { createInterface } from "node:readline";
import Provider from "oidc-provider";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const given = JSON.parse((await lines.next()).value);
const issuer = `${given.tls ? "https" : "http"}://127.0.0.1:${given.port}`;
const key = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" });

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: given.client_id,
      client_secret: given.client_secret,
      redirect_uris: [given.redirect_uri],
      grant_types: ["authorization_code"],
      response_types: ["code"],
    },
  ],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name", "preferred_username"] },
  cookies: { keys: [randomBytes(32).toString("hex")] },
  features: { devInteractions: { enabled: true } },
  findAccount: (_, subject) =>
    given.accounts[subject] && {
      accountId: subject,
      claims: () => ({ sub: subject, ...given.accounts[subject] }),
    },
  jwks: { keys: [{ ...key, use: "sig", alg: "RS256" }] },
  pkce: { required: () => true },
  ttl: { AccessToken: 600, AuthorizationCode: 60, Grant: 600, IdToken: 600, Interaction: 600, Session: 600 },
});

provider.use(async (ctx, next) => {
  await next();
  if (ctx.oidc?.route === "token" && ctx.status === 200) say({ issued: ctx.body });
});

const server = given.tls ? createSecureServer(given.tls, provider.callback()) : createServer(provider.callback());
server.listen(given.port, "127.0.0.1", () => say({ listening: issuer }));
await lines.next();
process.exit(0);
