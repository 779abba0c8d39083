'use strict';

// Zapier as an integration knows it: its platform core, and where its hooks arrive.

const { createServer } = require('node:http');
const { once } = require('node:events');
const zapier = require('zapier-platform-core');

const App = require('..');

const tester = zapier.createAppTester(App);
const authData = { url: process.env.TRIGGERS_URL, apiKey: process.env.TRIGGERS_KEY };
if (!authData.url || !authData.apiKey) throw new Error('TRIGGERS_URL and TRIGGERS_KEY must name a running deployment');

/** Runs a part of the integration as Zapier does. */
const run = (part, bundle = {}) => tester(part, { authData, ...bundle });

/** A request to the deployment beside the integration. */
const ask = async (method, path) => {
  const response = await fetch(authData.url + path, { method, headers: { authorization: `Bearer ${authData.apiKey}` } });
  return { status: response.status, body: response.status === 204 ? null : await response.json() };
};

/** Where hooks arrive: `next` gives them one by one, as `bundle.rawRequest` has them. It answers with `status`. */
class Hooks {
  static async listen() {
    const hooks = new Hooks();
    hooks.status = 200;
    hooks.arrived = [];
    hooks.waiting = [];
    hooks.server = createServer(async (request, response) => {
      let content = '';
      for await (const piece of request.setEncoding('utf8')) content += piece;
      const named = Object.entries(request.headers).map(([name, value]) => [hooks.name(name), value]);
      const hook = { method: request.method, querystring: '', headers: Object.fromEntries(named), content };
      response.writeHead(hooks.status, { 'retry-after': '7' }).end();
      const waiting = hooks.waiting.shift();
      if (waiting) waiting(hook);
      else hooks.arrived.push(hook);
    });
    hooks.server.listen(0, '127.0.0.1');
    await once(hooks.server, 'listening');
    hooks.url = `http://127.0.0.1:${hooks.server.address().port}/hooks/standard/1/abc/`;
    return hooks;
  }

  /** As Zapier names headers: `webhook-id` is `Http-Webhook-Id`. */
  name(header) {
    const words = header.split('-').map((word) => word[0].toUpperCase() + word.slice(1));
    return `Http-${words.join('-')}`;
  }

  next() {
    const hook = this.arrived.shift();
    return hook ? Promise.resolve(hook) : new Promise((resolve) => this.waiting.push(resolve));
  }

  close() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

module.exports = { App, Hooks, ask, authData, run };
