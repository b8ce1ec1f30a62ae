// The model, in a thread of its own, so that the page stays responsive. `session.js` is its other end.

import { buildModel, softmax } from "./model.js";
import { generator, order, probabilities, sampleToken } from "./sampling.js";

const LENS = 5; // tokens per layer of the logit lens
const NOT_FINITE = "it computes numbers that are not finite";
const PAUSE = 40; // ms between two looks for messages

let model; // a GPT
let context; // what it has read of the text: tokens, key-value cache, and the residual stream at each position
let written; // the same of what it writes, and the token that it has chosen but not read yet
const newest = { inspect: 0, generate: 0, predict: 0 }; // numbers of the jobs: a newer one ends the older one of its kind

const jobs = { load, inspect, predict, generate, stop };
self.onmessage = async ({ data: { kind, ...options } }) => {
  try {
    await jobs[kind](options);
  } catch (error) {
    self.postMessage({ kind: "failed", message: error.message });
  }
};

function stop() {
  begin("generate");
}

/** Begin a job. → a function that says whether a newer one has ended it. */
function begin(kind) {
  const own = ++newest[kind];
  return () => newest[kind] !== own;
}

/** Fetch the description and the weights of a model. */
async function load({ folder }) {
  const description = await (await get(`${folder}model.json`)).json();
  const reader = (await get(`${folder}${description.weights}`)).body.getReader();
  const bytes = new Uint8Array(description.bytes);
  let filled = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (filled + part.value.length > bytes.length) throw new Error("weights.bin is longer than model.json says");
    bytes.set(part.value, filled);
    filled += part.value.length;
    self.postMessage({ kind: "progress", work: "loading", done: filled, total: bytes.length });
  }
  if (filled < bytes.length) throw new Error(`weights.bin ends after ${filled} of ${bytes.length} bytes`);
  model = buildModel(description, bytes.buffer);
  context = emptyContext();
  const { config, name, tokens, parameters } = description;
  self.postMessage({ kind: "ready", description: { config, name, tokens, parameters, bytes: bytes.length } });
}

async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} can't be read (${answer.status})`);
  return answer;
}

// The page has what was computed at the first `sent` positions. What it lacks is `unsent`; null: it asks for none.
const emptyContext = () => ({ tokens: [], cache: model.newCache(), streams: [], chosen: null, sent: 0, unsent: [] });

/** Make a context that of these tokens. What both have in common is kept. → whether it was ended. */
async function read(context, tokens, ended) {
  let same = 0;
  while (same < Math.min(tokens.length, context.tokens.length) && tokens[same] === context.tokens[same]) same++;
  context.cache.rewind(same);
  context.tokens.length = context.streams.length = same;
  context.sent = Math.min(same, context.sent);
  if (context.unsent) context.unsent.length = Math.min(same - context.sent, context.unsent.length);
  for (let pause = performance.now() + PAUSE; same < tokens.length; same++) {
    extend(context, tokens[same]);
    if (performance.now() > pause) {
      self.postMessage({ kind: "progress", work: "reading", done: same + 1, total: tokens.length });
      await messages();
      if (ended()) return true;
      pause = performance.now() + PAUSE;
    }
  }
  return false;
}

function extend(context, token) {
  const { stream, attention } = model.forward(token, context.cache);
  context.tokens.push(token);
  context.streams.push(stream);
  context.unsent?.push({ attention: joined(attention), norms: Float32Array.from(stream, norm) });
}

/** The attention weights of one position: (layer, head, S). */
function joined(layers) {
  const [{ length }] = layers, all = new Float32Array(layers.length * length);
  for (const [layer, weights] of layers.entries()) all.set(weights, layer * length);
  return all;
}

const norm = (x) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));

/** Read tokens, and send what the page draws of every position that it does not have yet. */
async function inspect({ tokens, id }) {
  if (await read(context, tokens, begin("inspect"))) return;
  const { sent: from, unsent: positions } = context;
  Object.assign(context, { sent: tokens.length, unsent: [] });
  if (!positions.every(({ norms }) => norms.every(Number.isFinite))) throw new Error(NOT_FINITE);
  self.postMessage({ kind: "trace", id, from, positions }, positions.map(({ attention }) => attention.buffer));
}

/** What the model says after a position: the logits, and the likeliest tokens by ln_f and the head after each layer. */
async function predict({ position, id }) {
  const ended = begin("predict");
  await messages(); // of several that wait, only the newest is answered
  if (ended()) return;
  const stream = context.streams[position];
  if (!stream) return; // of a text that is no longer there
  let logits;
  const lens = stream.map((x) => {
    logits = model.logits(x);
    const p = softmax(Float64Array.from(logits));
    return Array.from(order(p).subarray(0, LENS), (token) => ({ token, probability: p[token] }));
  });
  self.postMessage({ kind: "prediction", id, position, logits, lens });
}

/** Continue a text, and say why it ended. */
async function generate({ id, ...options }) {
  let reason = "failed";
  try {
    reason = await write(id, options, begin("generate"));
  } finally {
    self.postMessage({ kind: "finished", id, reason });
  }
}

/**
 * Continue tokens, or without them what was written last, by up to `count` tokens. → why it ended.
 *
 * As `generate` of gpt2/generate.py does: when the context is full, its later half starts a new one.
 */
async function write(id, { tokens, count, rule, seed }, ended) {
  if (tokens) {
    const { cache, streams } = context;
    written = { ...context, tokens: [...context.tokens], streams: [...streams], cache: cache.fork(), unsent: null };
    if (await read(written, tokens, ended)) return "stopped";
  }
  const random = generator(seed), started = performance.now();
  let pause = started + PAUSE;
  for (let made = 1; made <= count; made++) {
    const restarted = written.chosen !== null && written.cache.position === model.config.block_size;
    if (restarted ? await restart(ended) : take()) return "stopped";
    const logits = model.logits(written.streams.at(-1).at(-1));
    if (logits.some(Number.isNaN)) throw new Error(NOT_FINITE);
    const token = (written.chosen = sampleToken(probabilities(logits, rule), random));
    const seconds = (performance.now() - started) / 1000;
    self.postMessage({ kind: "token", id, token, made, seconds, bytes: written.cache.bytes, restarted });
    if (token === model.config.vocab_size - 1) return "end of text";
    if (performance.now() > pause) {
      await messages();
      if (ended()) return "stopped";
      pause = performance.now() + PAUSE;
    }
  }
  return "length";
}

/** Read the token that was chosen last, if there is one. */
function take() {
  if (written.chosen !== null) extend(written, written.chosen);
  written.chosen = null;
}

/** Read the later half of a full context and the token that was chosen last, afresh. → whether it was ended. */
async function restart(ended) {
  const half = Math.max(1, Math.floor(model.config.block_size / 2)), next = { ...emptyContext(), unsent: null };
  if (await read(next, [...written.tokens, written.chosen].slice(-half), ended)) return true;
  written = next;
  return false;
}

/** Let waiting messages in. A timer would wait for 4 ms. */
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
