'use strict';

// What is done to every request, and to every answer.

/** Requests name paths; they go to the deployment of the connection, with its key. */
const authorize = (request, z, bundle) => {
  const { url, apiKey } = bundle.authData;
  return {
    ...request,
    url: url.replace(/\/+$/, '') + request.url,
    headers: { ...request.headers, authorization: `Bearer ${apiKey}` },
  };
};

/** Problems (RFC 9457) as Zapier has them: tried again later where that may help, and else shown with what is to mend. */
const explain = (response, z) => {
  if (response.status < 400) return response;
  let problem = {};
  try {
    problem = JSON.parse(response.content);
  } catch {
    // Something in between has answered.
  }
  const places = (problem.errors ?? []).map(({ pointer, detail }) => `${pointer ?? ''} ${detail}`.trim());
  const message = places.join('; ') || problem.detail || `The answer was ${response.status}.`;
  if ([429, 503].includes(response.status)) {
    throw new z.errors.ThrottledError(message, Number(response.getHeader('retry-after')) || 60);
  }
  // Whoever asks for what may be gone looks at the status itself.
  if (response.status === 404) return response;
  throw new z.errors.Error(message, problem.code, response.status);
};

module.exports = { authorize, explain };
