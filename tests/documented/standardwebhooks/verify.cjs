// Verifies a webhook with the library of Standard Webhooks for JavaScript, as its readers are told to.

const { readFileSync } = require("node:fs");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const given = JSON.parse(readFileSync(0, "utf8"));
try {
  new Webhook(given.secret).verify(Buffer.from(given.body, "base64"), given.headers);
  console.log("valid");
} catch (error) {
  if (!(error instanceof WebhookVerificationError)) throw error;
  console.log("invalid");
}
