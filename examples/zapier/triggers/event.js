'use strict';

const { isSigned } = require('../signature');

const SAMPLE = {
  id: 'evt_01kgaj5s9se2ttm1bq3p5n1qvr',
  type: 'user.created',
  timestamp: '2026-01-31T12:00:00.000Z',
  data: { name: 'Ada' },
};

/** How many events are shown to make a Zap with. */
const SAMPLES = 100;
/** How many pages are asked for: a page may be short, or empty, where an event is rare, and Zapier does not wait for long. */
const PAGES = 10;

const patterns = (bundle) => {
  const given = (bundle.inputData.event_types ?? []).filter(Boolean);
  return given.length > 0 ? given : ['*'];
};

/** A Zap is switched on. What is answered comes back as `bundle.subscribeData`, its secret included. */
const performSubscribe = async (z, bundle) => {
  const response = await z.request({
    method: 'POST',
    url: '/v1/subscriptions',
    body: { url: bundle.targetUrl, event_types: patterns(bundle), description: 'A Zap' },
  });
  const { id, secret } = response.data;
  return { id, secret };
};

/** A Zap is switched off. If the subscription is gone already, that is as well. */
const performUnsubscribe = async (z, bundle) => {
  const { id } = bundle.subscribeData;
  await z.request({ method: 'DELETE', url: `/v1/subscriptions/${id}`, skipThrowForStatus: true });
  return { id };
};

/** A webhook came. */
const perform = (z, bundle) => {
  if (!isSigned(bundle.subscribeData.secret, bundle.rawRequest)) {
    throw new z.errors.HaltedError('The hook is not signed by Triggers.');
  }
  const { id, type, timestamp, data } = JSON.parse(bundle.rawRequest.content);
  return [{ id, type, timestamp, data }];
};

/** The newest events of a pattern. */
const newest = async (z, type) => {
  const found = [];
  let cursor;
  for (let page = 0; page < PAGES && found.length < SAMPLES; page += 1) {
    const params = { type, limit: SAMPLES - found.length, ...(cursor && { cursor }) };
    const { data } = await z.request({ url: '/v1/events', params });
    found.push(...data.data);
    cursor = data.next_cursor;
    if (!cursor) break;
  }
  return found;
};

/** Events to make a Zap with, newest first, whoever has subscribed to them. */
const performList = async (z, bundle) => {
  const found = await Promise.all(patterns(bundle).map((pattern) => newest(z, pattern)));
  const each = new Map(found.flat().map((event) => [event.id, event]));
  return [...each.values()]
    .sort((one, other) => Date.parse(other.received_at) - Date.parse(one.received_at))
    .slice(0, SAMPLES)
    .map((event) => ({
      id: event.id,
      type: event.type,
      timestamp: event.occurred_at ?? event.received_at,
      data: event.payload,
    }));
};

module.exports = {
  key: 'event',
  noun: 'Event',
  display: { label: 'New Event', description: 'Triggers when an event is accepted.' },
  operation: {
    type: 'hook',
    inputFields: [
      {
        key: 'event_types',
        label: 'Event types',
        type: 'string',
        list: true,
        placeholder: 'user.*',
        helpText: 'Which events: `user.created`, `user.*` (one more segment), `user.**` (one or more). All, if there is none.',
      },
    ],
    performSubscribe,
    performUnsubscribe,
    perform,
    performList,
    sample: SAMPLE,
    outputFields: [
      { key: 'id', label: 'ID', type: 'string' },
      { key: 'type', label: 'Type', type: 'string' },
      { key: 'timestamp', label: 'Time', type: 'datetime' },
    ],
  },
};
