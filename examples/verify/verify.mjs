// Verifies a webhook by Standard Webhooks with Node's own modules alone: HMAC-SHA256 (`v1`, by the secret `whsec_…`) and
// Ed25519 (`v1a`, by the public key `whpk_…`).

import { createHmac, createPublicKey, timingSafeEqual, verify as verifySignature } from "node:crypto";

const TOLERANCE_SECONDS = 5 * 60;

/** Whether the webhook is from whoever has the secret, and was signed within the last minutes. `headers` by lower-case
 * name; `body` a Buffer, exactly as it came. */
export function verify(secret, headers, body) {
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  const signatures = (headers["webhook-signature"] ?? "").split(" ");
  const age = Math.abs(Date.now() / 1000 - Number(timestamp));
  if (!id || !timestamp || !(age <= TOLERANCE_SECONDS)) return false;
  const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  // While a secret is rotated there are two signatures: one that fits is enough.
  return signatures.some((signature) => {
    const [version, encoded] = signature.split(",");
    const given = Buffer.from(encoded ?? "", "base64");
    if (version === "v1" && secret.startsWith("whsec_")) {
      const key = Buffer.from(secret.slice("whsec_".length), "base64");
      const expected = createHmac("sha256", key).update(signed).digest();
      return given.length === expected.length && timingSafeEqual(given, expected);
    }
    if (version === "v1a" && secret.startsWith("whpk_")) {
      const x = Buffer.from(secret.slice("whpk_".length), "base64").toString("base64url");
      const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
      return verifySignature(null, signed, key, given);
    }
    return false;
  });
}

if (process.argv[1]?.endsWith("verify.mjs")) {
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const given = JSON.parse(text);
  console.log(verify(given.secret, given.headers, Buffer.from(given.body, "base64")) ? "valid" : "invalid");
}
