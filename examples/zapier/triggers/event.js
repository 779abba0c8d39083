'use strict';

const { isSigned } = require('../signature');

const SAMPLE = {
  id: 'evt_01kgaj5s9se2ttm1bq3p5n1qvr',
  type: 'user.created',
  timestamp: '2026-01-31T12:00:00.000Z',
  data: { name: 'Ada' },
};

/** Whether a pattern fits a type: `*` alone fits all; within a pattern it is one more segment, and `**` one or more. */
const fits = (pattern, type) => {
  if (pattern === '*') return true;
  const segments = pattern.split('.').map((segment) => {
    if (segment === '**') return '.+';
    return segment === '*' ? '[^.]+' : segment.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  });
  return new RegExp(`^${segments.join('\\.')}$`).test(type);
};

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

/** Events to make a Zap with, newest first: those that wait in the inbox because nobody has subscribed to them yet. */
const performList = async (z, bundle) => {
  const response = await z.request({ url: '/v1/inbox', params: { limit: 100 } });
  const wanted = patterns(bundle);
  return response.data.data
    .filter((event) => wanted.some((pattern) => fits(pattern, event.type)))
    .map((event) => ({
      id: event.id,
      type: event.type,
      timestamp: event.occurred_at ?? event.received_at,
      data: event.payload,
    }))
    .reverse();
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
