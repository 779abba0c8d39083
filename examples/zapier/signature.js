'use strict';

const { createHmac, timingSafeEqual } = require('node:crypto');

/** Whether a hook was signed with the subscription's secret, by Standard Webhooks.
 *
 * Its time is signed, but not compared with the clock: Zapier may hold hooks back for longer than any tolerance. */
const isSigned = (secret, { headers, content }) => {
  // Zapier hands headers on as `Http-Webhook-Id`.
  const named = Object.entries(headers ?? {}).map(([name, value]) => [name.toLowerCase().replace(/^http-/, ''), value]);
  const given = Object.fromEntries(named);
  const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64');
  const signed = `${given['webhook-id']}.${given['webhook-timestamp']}.${content}`;
  const expected = createHmac('sha256', key).update(signed).digest();
  // While a secret is rotated there are two signatures.
  return (given['webhook-signature'] ?? '').split(' ').some((signature) => {
    const [version, encoded] = signature.split(',');
    const bytes = Buffer.from(encoded ?? '', 'base64');
    return version === 'v1' && bytes.length === expected.length && timingSafeEqual(bytes, expected);
  });
};

module.exports = { isSigned };
