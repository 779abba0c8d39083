'use strict';

const SAMPLE = {
  id: 'evt_01kgaj5s9se2ttm1bq3p5n1qvr',
  type: 'user.created',
  status: 'accepted',
  received_at: '2026-01-31T12:00:00.000Z',
  duplicate: false,
};

const perform = async (z, bundle) => {
  const { type, payload, dedup_id: dedupId } = bundle.inputData;
  try {
    JSON.parse(payload);
  } catch (error) {
    throw new z.errors.Error(`The payload is not JSON: ${error.message}`, 'invalid_payload');
  }
  const members = [`"type":${JSON.stringify(type)}`, `"payload":${payload}`];
  if (dedupId) members.push(`"dedup_id":${JSON.stringify(dedupId)}`);
  const response = await z.request({
    method: 'POST',
    url: '/v1/events',
    headers: { 'content-type': 'application/json' },
    // The payload as it was given: reading and writing it would round its numbers.
    body: `{${members.join(',')}}`,
  });
  return response.data;
};

module.exports = {
  key: 'send_event',
  noun: 'Event',
  display: { label: 'Send Event', description: 'Posts an event, which every subscription to its type gets.' },
  operation: {
    inputFields: [
      { key: 'type', label: 'Type', type: 'string', required: true, placeholder: 'user.created' },
      { key: 'payload', label: 'Payload', type: 'text', required: true, helpText: 'Any JSON: `{"name": "Ada"}`' },
      {
        key: 'dedup_id',
        label: 'Deduplication ID',
        type: 'string',
        required: false,
        helpText: 'What makes this event one: within 24 hours another with the same ID is not sent again. Without it, a step that is replayed sends its event twice.',
      },
    ],
    perform,
    sample: SAMPLE,
    outputFields: [
      { key: 'id', label: 'ID', type: 'string' },
      { key: 'type', label: 'Type', type: 'string' },
      { key: 'duplicate', label: 'Was there before', type: 'boolean' },
    ],
  },
};
