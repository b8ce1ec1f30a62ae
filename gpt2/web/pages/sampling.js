// The choice of the next token, by the rules of gpt2/generate.py and in their order. Built in lesson 04.

import { softmax } from "./model.js";

/**
 * Logits (V) → the probability of every token (V) under a rule.
 *
 * `temperature` divides the logits; 0 takes the likeliest token. `topK` keeps the k likeliest tokens (null: all).
 * `topP` keeps the fewest tokens whose probabilities add up to p (null: all).
 */
export function probabilities(logits, { temperature = 1, topK = null, topP = null } = {}) {
  if (temperature === 0) {
    const likeliest = Float64Array.from(logits).fill(0);
    likeliest[order(logits)[0]] = 1;
    return likeliest;
  }
  const scaled = Float64Array.from(logits, (logit) => logit / temperature);
  if (topK !== null && topK < scaled.length) {
    const kth = scaled.slice().sort().at(-topK);
    for (let i = 0; i < scaled.length; i++) if (scaled[i] < kth) scaled[i] = -Infinity;
  }
  const p = softmax(scaled);
  return topP !== null && topP < 1 ? nucleus(p, topP) : p;
}

/** Probabilities without the tokens before which the likelier ones add up to `topP`, scaled to add up to 1. */
function nucleus(p, topP) {
  const kept = new Float64Array(p.length);
  let sum = 0;
  for (const token of order(p)) {
    if (sum >= topP) break;
    kept[token] = p[token];
    sum += p[token];
  }
  return kept.map((value) => value / sum);
}

/** The tokens in the order of their values, the largest first; among equals, the lower id. */
export function order(values) {
  return Uint32Array.from(values, (_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
}

/** One token, drawn by its probability. `random()` is a number from 0 to below 1. */
export function sampleToken(p, random) {
  let left = random(), last = 0;
  for (let token = 0; token < p.length; token++) {
    if (p[token] === 0) continue;
    last = token;
    left -= p[token];
    if (left < 0) return token;
  }
  return last; // rounding has left a little
}

/** A generator of numbers from 0 to below 1 from a seed: the same seed, the same numbers (a Weyl sequence, mixed). */
export function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0; // 2³² divided by the golden ratio
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b); // the finaliser of MurmurHash3
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
  };
}
