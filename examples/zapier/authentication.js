'use strict';

module.exports = {
  type: 'custom',
  fields: [
    {
      key: 'url',
      label: 'URL',
      type: 'string',
      required: true,
      helpText: 'Where your deployment of Triggers is, as in `https://triggers.example.com`.',
    },
    {
      key: 'apiKey',
      label: 'API key',
      type: 'password',
      required: true,
      helpText: 'With the scopes `events:write`, `events:read` and `subscriptions:write`.',
    },
  ],
  // Any key may ask whose it is.
  test: async (z) => (await z.request({ url: '/v1/organization' })).data,
  connectionLabel: '{{name}}',
};
