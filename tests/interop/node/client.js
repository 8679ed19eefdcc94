// A workload with grpc-js, which has no SPIFFE library: the messages come from the .proto file.
// tests/interop/foreign.py describes the commands and their output.
"use strict";

const crypto = require("node:crypto");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PATIENCE_MS = 20_000;
const DEADLINE_MS = 3000;
const RETRY_MS = 100;
const WRONG_AUDIENCE = "other-audience";
const DIGESTS = { ES256: "sha256", ES384: "sha384", RS256: "sha256" };

const [proto, command, ...operands] = process.argv.slice(2);
const api = grpc.loadPackageDefinition(
  loader.loadSync(proto, { keepCase: true }),
);
const client = new api.SpiffeWorkloadAPI(
  process.env.SPIFFE_ENDPOINT_SOCKET,
  grpc.credentials.createInsecure(),
);

function header() {
  const metadata = new grpc.Metadata();
  metadata.set("workload.spiffe.io", "true");
  return metadata;
}

function soon() {
  return { deadline: Date.now() + PATIENCE_MS };
}

// Call a method with one response.
function unary(method, request, metadata = header()) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, soon(), (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

// Return the first message of a stream.
async function first(method, metadata = header()) {
  const call = client[method]({}, metadata, soon());
  try {
    for await (const message of call) return message;
  } finally {
    call.on("error", () => {});
    call.cancel();
  }
  throw new Error(`${method} ended without a message`);
}

async function fetch(audiences) {
  const [answer, bundles] = [await first("FetchX509SVID"), await first("FetchX509Bundles")];
  const authorities = certificates(bundles.bundles[Object.keys(bundles.bundles)[0]]);
  report({
    svids: answer.svids.map((svid) => describe(svid, authorities)),
    x509_bundles: fingerprintsByName(bundles.bundles),
    x509_svid_bundle: Object.fromEntries(
      answer.svids.map((svid) => [trustDomain(svid.spiffe_id), fingerprints(svid.bundle)]),
    ),
    jwt: await fetchJwt(audiences),
  });
}

function describe(svid, authorities) {
  const chain = certificates(svid.x509_svid);
  const key = crypto.createPrivateKey({ key: svid.x509_svid_key, format: "der", type: "pkcs8" });
  return {
    spiffe_id: svid.spiffe_id,
    verified_as: verify(chain, authorities),
    key_matches: chain[0].checkPrivateKey(key),
  };
}

// Verify that each certificate is signed by the next and the last by an authority; return the URI.
function verify(chain, authorities) {
  chain.forEach((certificate, position) => {
    const issuers = position + 1 < chain.length ? [chain[position + 1]] : authorities;
    if (!issuers.some((issuer) => certificate.verify(issuer.publicKey))) {
      throw new Error(`certificate ${position} has no valid signature`);
    }
  });
  return chain[0].subjectAltName.split(", ").find((name) => name.startsWith("URI:")).slice(4);
}

// Split concatenated DER certificates: each starts with SEQUENCE and a length of two bytes.
function certificates(der) {
  const found = [];
  for (let start = 0; start < der.length; ) {
    const end = start + 4 + der.readUInt16BE(start + 2);
    found.push(new crypto.X509Certificate(der.subarray(start, end)));
    start = end;
  }
  return found;
}

function fingerprints(der) {
  return certificates(der).map((certificate) => hex(certificate.raw)).sort();
}

function fingerprintsByName(bundles) {
  return Object.fromEntries(
    Object.entries(bundles).map(([id, der]) => [trustDomain(id), fingerprints(der)]),
  );
}

function hex(bytes) {
  return crypto.createHash("sha256").update(bytes).digest("hex");
}

function trustDomain(spiffeId) {
  return spiffeId.slice("spiffe://".length).split("/")[0];
}

async function fetchJwt(audiences) {
  const { spiffe_id, svid } = (await unary("FetchJWTSVID", { audience: audiences })).svids[0];
  const { bundles } = await first("FetchJWTBundles");
  const keys = JSON.parse(Object.values(bundles)[0]).keys;
  const ask = async (audience) =>
    (await unary("ValidateJWTSVID", { audience, svid })).spiffe_id;
  return {
    spiffe_id,
    audience: claims(svid).aud,
    validated_by_client: audiences.map((audience) => validate(svid, keys, audience)),
    validated_by_agent: [await ask(audiences[0]), await ask(audiences[1])],
    wrong_audience_by_client: await refusal(async () => validate(svid, keys, WRONG_AUDIENCE)),
    wrong_audience_by_agent: await refusal(() => ask(WRONG_AUDIENCE)),
  };
}

function validate(token, keys, audience) {
  const [head, body, signature] = token.split(".");
  const { alg, kid } = JSON.parse(Buffer.from(head, "base64url"));
  const jwk = keys.find((key) => key.kid === kid);
  const key = { key: crypto.createPublicKey({ key: jwk, format: "jwk" }), dsaEncoding: "ieee-p1363" };
  const signed = Buffer.from(`${head}.${body}`);
  if (!crypto.verify(DIGESTS[alg], signed, key, Buffer.from(signature, "base64url"))) {
    throw new Error("invalid signature");
  }
  const { aud, exp, sub } = claims(token);
  if (exp * 1000 < Date.now()) throw new Error("expired");
  if (!aud.includes(audience)) throw new Error(`aud lacks ${audience}`);
  return sub;
}

function claims(token) {
  return JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
}

async function refused(metadata) {
  report({
    x509: await refusal(() => first("FetchX509SVID", metadata)),
    x509_bundles: await refusal(() => first("FetchX509Bundles", metadata)),
    jwt: await refusal(() => jwt(metadata)),
    jwt_bundles: await refusal(() => first("FetchJWTBundles", metadata)),
  });
}

function jwt(metadata) {
  return unary("FetchJWTSVID", { audience: ["any-audience"] }, metadata);
}

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return `${grpc.status[error.code] ?? error.name}: ${error.message}`;
  }
  return "";
}

async function watch() {
  for (;;) {
    try {
      for await (const answer of client.FetchX509SVID({}, header())) reportUpdate(answer.svids[0]);
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function reportUpdate(svid) {
  const leaf = certificates(svid.x509_svid)[0];
  report({
    spiffe_id: svid.spiffe_id,
    serial: leaf.serialNumber,
    expires_at: new Date(leaf.validTo).toISOString().replace("Z", "+00:00"),
    authorities: fingerprints(svid.bundle),
  });
}

async function many(count) {
  const call = (_, position) => (position % 2 ? jwt() : first("FetchX509SVID"));
  const answers = await Promise.all(Array.from({ length: Number(count) }, call));
  await reportAndWait({ spiffe_ids: answers.map((answer) => answer.svids[0].spiffe_id) });
}

// End a stream after its first message, between two other calls on the same connection.
async function ended(how) {
  await jwt();
  const options = how === "deadline" ? { deadline: Date.now() + DEADLINE_MS } : {};
  const call = client.FetchX509SVID({}, header(), options);
  let updates = 0;
  let status = "OK";
  try {
    for await (const _answer of call) {
      updates += 1;
      if (how === "cancel") call.cancel();
    }
  } catch (error) {
    status = grpc.status[error.code];
  }
  await reportAndWait({ updates, status, spiffe_id: (await jwt()).svids[0].spiffe_id });
}

// The connection stays open until the test ends the process.
function reportAndWait(what) {
  report(what);
  return new Promise(() => setInterval(() => {}, PATIENCE_MS));
}

function report(what) {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

const commands = {
  fetch: (...audiences) => fetch(audiences),
  refused: () => refused(header()),
  headerless: () => refused(new grpc.Metadata()),
  watch,
  many,
  ended,
};
commands[command](...operands).then(() => client.close());
