'use strict';

// The integration as Zapier runs it, with a real deployment: TRIGGERS_URL and TRIGGERS_KEY name it.

const assert = require('node:assert/strict');
const { after, before, describe, it } = require('node:test');
const { validateApp } = require('zapier-platform-core/src/tools/schema');

const { App, Hooks, ask, authData, run } = require('./zapier');

const { operation } = App.triggers.event;
const send = (inputData) => run(App.creates.send_event.operation.perform, { inputData });

it('is what the schema of the platform asks for', () => {
  assert.deepEqual(validateApp(App), []);
});

describe('authentication', () => {
  it('names the organization', async () => {
    const organization = await run(App.authentication.test);
    assert.match(organization.id, /^org_/);
    assert.equal(typeof organization.name, 'string');
  });

  it('refuses a key that is none', async () => {
    const wrong = { authData: { ...authData, apiKey: 'trg_live_none' } };
    await assert.rejects(run(App.authentication.test, wrong), /"status":401/);
  });
});

describe('send_event', () => {
  it('sends an event once, its payload as it is', async () => {
    const inputData = { type: 'order.placed', payload: '{"total": 12345678901234567890}', dedup_id: 'order-1' };
    const first = await send(inputData);
    assert.equal(first.status, 'accepted');
    const again = await send(inputData);
    assert.deepEqual([again.id, again.duplicate], [first.id, true]);
  });

  it('says what is wrong', async () => {
    await assert.rejects(send({ type: 'triggers.mine', payload: '1' }), /\/type must not begin with/);
    await assert.rejects(send({ type: 'order.placed', payload: '{' }), /The payload is not JSON/);
  });

  it('comes back when it is told to', async () => {
    const hooks = await Hooks.listen();
    hooks.status = 503;
    const throttled = { authData: { ...authData, url: new URL(hooks.url).origin } };
    const inputData = { type: 'order.placed', payload: '1' };
    await assert.rejects(run(App.creates.send_event.operation.perform, { ...throttled, inputData }), (error) => {
      assert.equal(error.name, 'ThrottledError');
      assert.equal(JSON.parse(error.message).delay, 7);
      return true;
    });
    hooks.close();
  });
});

describe('event', { timeout: 60_000 }, () => {
  let hooks;
  before(async () => {
    hooks = await Hooks.listen();
  });
  after(() => hooks.close());

  const subscribe = async (inputData) =>
    run(operation.performSubscribe, { targetUrl: hooks.url, inputData });
  const exists = async ({ id }) => (await ask('GET', `/v1/subscriptions/${id}`)).status === 200;

  it('gives the newest as samples, also of what a Zap has subscribed to', async () => {
    const subscribeData = await subscribe({ event_types: ['taken.*'] });
    let last;
    for (let n = 1; n <= 101; n += 1) last = await send({ type: 'taken.here', payload: `{"n":${n}}` });
    await ask('GET', `/v1/events/${last.id}`);
    for (let n = 1; n <= 101; n += 1) await hooks.next();
    for (const event_types of [['taken.here'], ['taken.*', 'taken.here']]) {
      const listed = await run(operation.performList, { inputData: { event_types } });
      assert.equal(listed.length, 100);
      assert.deepEqual(listed.map(({ data }) => data.n), Array.from({ length: 100 }, (_, at) => 101 - at));
    }
    await run(operation.performUnsubscribe, { subscribeData });
  });

  it('gives the newest of all patterns together', async () => {
    const sent = [];
    for (let n = 0; n < 6; n += 1) sent.push(await send({ type: `mixed.${n % 2 ? 'odd' : 'even'}.here`, payload: `{"n":${n}}` }));
    for (const { id } of sent) await ask('GET', `/v1/events/${id}`);
    const listed = await run(operation.performList, { inputData: { event_types: ['mixed.even.*', 'mixed.odd.*'] } });
    assert.deepEqual(listed.map(({ data }) => data.n), [5, 4, 3, 2, 1, 0]);
  });

  it('gives samples of each pattern', async () => {
    const payloads = [];
    for (const n of [1, 2]) payloads.push(await send({ type: 'sample.made.here', payload: `{"n":${n}}` }));
    payloads.push(await send({ type: 'sample.made', payload: '{}' }));
    for (const { id } of payloads) await ask('GET', `/v1/events/${id}`);
    for (const event_types of [['sample.made.*'], ['nothing', 'sample.*.here'], ['sample.made.here']]) {
      const listed = await run(operation.performList, { inputData: { event_types } });
      assert.deepEqual(listed.map(({ data }) => data.n), [2, 1], String(event_types));
      assert.deepEqual(Object.keys(listed[0]), Object.keys(operation.sample));
    }
    const all = await run(operation.performList, { inputData: {} });
    assert.ok(all.some(({ type }) => type === 'sample.made'));
  });

  it('subscribes, turns webhooks into items, and unsubscribes', async () => {
    const subscribeData = await subscribe({ event_types: ['invoice.*'] });
    assert.ok(await exists(subscribeData));
    await send({ type: 'other.paid', payload: '{}' });
    const sent = await send({ type: 'invoice.paid', payload: '{"name":"Adä","of":1}' });

    const rawRequest = await hooks.next();
    const items = await run(operation.perform, { subscribeData, rawRequest });
    assert.equal(items.length, 1);
    assert.equal(items[0].id, sent.id);
    assert.equal(items[0].type, 'invoice.paid');
    assert.deepEqual(items[0].data, { name: 'Adä', of: 1 });

    for (const forged of [
      { ...rawRequest, content: rawRequest.content.replace('"of":1', '"of":2') },
      { ...rawRequest, headers: {} },
      { ...rawRequest, headers: { ...rawRequest.headers, 'Http-Webhook-Timestamp': '1' } },
    ]) {
      await assert.rejects(run(operation.perform, { subscribeData, rawRequest: forged }), /not signed/);
    }

    await run(operation.performUnsubscribe, { subscribeData });
    assert.equal(await exists(subscribeData), false);
    // Once more, as after an answer that was lost.
    await run(operation.performUnsubscribe, { subscribeData });
  });

  it('subscribes to all that there is, if no types are named', async () => {
    const subscribeData = await subscribe({});
    const { body } = await ask('GET', `/v1/subscriptions/${subscribeData.id}`);
    assert.deepEqual(body.event_types, ['*']);
    await run(operation.performUnsubscribe, { subscribeData });
  });

  it('is gone when the hook is: 410 disables the subscription', async () => {
    const subscribeData = await subscribe({ event_types: ['gone.*'] });
    hooks.status = 410;
    await send({ type: 'gone.soon', payload: '{}' });
    await hooks.next();
    let subscription;
    do {
      ({ body: subscription } = await ask('GET', `/v1/subscriptions/${subscribeData.id}`));
    } while (subscription.enabled);
    assert.match(subscription.disabled_reason, /410|gone/i);
    await run(operation.performUnsubscribe, { subscribeData });
    hooks.status = 200;
  });
});
