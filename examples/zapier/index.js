'use strict';

const { version: platformVersion } = require('zapier-platform-core');

const authentication = require('./authentication');
const { authorize, explain } = require('./http');
const event = require('./triggers/event');
const sendEvent = require('./creates/send_event');
const { version } = require('./package.json');

module.exports = {
  version,
  platformVersion,
  flags: { cleanInputData: false },
  authentication,
  beforeRequest: [authorize],
  afterResponse: [explain],
  triggers: { [event.key]: event },
  creates: { [sendEvent.key]: sendEvent },
};
