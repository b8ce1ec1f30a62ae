// GPT-2 in plain JavaScript: the network of gpt2/model.py under the same names, one position at a time.
//
// A position needs the keys and values of those before it, which the cache holds, so that nothing is computed twice.
// Shapes in comments: C = n_embd channels, H heads of D = C / H channels, S positions so far, V tokens.
// Built in lessons 02 (attention), 03 (the model) and 04 (the cache).

const EPS = 1e-5; // of a LayerNorm

/** The keys and values of the positions seen so far: a vector (C) per layer and position. */
export class KVCache {
  constructor(layers) {
    this.k = Array.from({ length: layers }, () => []);
    this.v = Array.from({ length: layers }, () => []);
  }

  get position() {
    return this.k[0].length;
  }

  /** Size in bytes: keys and values in fp32. */
  get bytes() {
    const width = this.position ? this.k[0][0].length : 0;
    return 2 * 4 * this.k.length * this.position * width;
  }

  append(layer, k, v) {
    this.k[layer].push(k);
    this.v[layer].push(v);
  }

  /** A second cache that goes on from here by itself. The vectors are shared. */
  fork() {
    const fork = new KVCache(0);
    [fork.k, fork.v] = [this.k, this.v].map((layers) => layers.map((list) => [...list]));
    return fork;
  }

  /** Forget everything from a position on. */
  rewind(position) {
    for (const list of [...this.k, ...this.v]) list.length = Math.min(list.length, position);
  }
}

/**
 * x (in) → weight (out, in) · x + bias (out). A weight in int8 has one scale per row.
 *
 * Four rows at a time, so that each number of x is read once for all four, and no sum waits for another.
 */
export function linear(x, { values, scales, rows, columns }, bias = null) {
  const y = new Float32Array(rows), whole = rows - (rows % 4);
  for (let row = 0; row < whole; row += 4) {
    let i = row * columns, j = i + columns, k = j + columns, l = k + columns;
    let a = 0, b = 0, c = 0, d = 0;
    for (let column = 0; column < columns; column++, i++, j++, k++, l++) {
      const input = x[column];
      a += values[i] * input;
      b += values[j] * input;
      c += values[k] * input;
      d += values[l] * input;
    }
    y[row] = a;
    y[row + 1] = b;
    y[row + 2] = c;
    y[row + 3] = d;
  }
  for (let row = whole; row < rows; row++) {
    for (let column = 0; column < columns; column++) y[row] += values[row * columns + column] * x[column];
  }
  for (let row = 0; row < rows; row++) y[row] = y[row] * (scales ? scales[row] : 1) + (bias ? bias[row] : 0);
  return y;
}

/** A row of an embedding: (C). */
export function embedding(weight, row) {
  const { values, scales, columns } = weight;
  const x = Float32Array.from(values.subarray(row * columns, (row + 1) * columns));
  return scales ? x.map((value) => value * scales[row]) : x;
}

/** The tanh form of GELU, as published, in place. */
export function gelu(x) {
  const scale = Math.sqrt(2 / Math.PI);
  for (let i = 0; i < x.length; i++) x[i] *= 0.5 * (1 + Math.tanh(scale * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
  return x;
}

/** A vector with mean 0 and variance 1, then scaled and shifted per channel: (C) → (C). */
export function layerNorm(x, { weight, bias }) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + EPS);
  return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
}

/** Probabilities that are proportional to e^x, in place. */
export function softmax(x) {
  let largest = -Infinity, sum = 0;
  for (const value of x) largest = Math.max(largest, value);
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) x[i] /= sum;
  return x;
}

const add = (x, y) => x.map((value, i) => value + y[i]);

/** Multi-head attention of the newest position to all positions so far. */
class CausalSelfAttention {
  constructor(config, layer, { c_attn, c_proj }) {
    Object.assign(this, { layer, n_head: config.n_head, c_attn, c_proj });
  }

  /** (C) → the output (C), and the attention weights (H, S) of this position. */
  forward(x, cache) {
    const C = x.length, qkv = linear(x, this.c_attn.weight, this.c_attn.bias); // q, k and v of all heads
    const q = qkv.subarray(0, C);
    cache.append(this.layer, qkv.slice(C, 2 * C), qkv.slice(2 * C));
    const { y, weights } = this.attend(q, cache.k[this.layer], cache.v[this.layer]);
    return { y: linear(y, this.c_proj.weight, this.c_proj.bias), weights };
  }

  /** Scaled dot-product attention: the query (C) of one position, keys and values of S positions. */
  attend(q, k, v) {
    const S = k.length, D = q.length / this.n_head;
    const y = new Float32Array(q.length), weights = new Float32Array(this.n_head * S);
    for (let head = 0; head < this.n_head; head++) {
      const first = head * D, end = first + D, row = weights.subarray(head * S, (head + 1) * S);
      for (let s = 0; s < S; s++) {
        const key = k[s];
        let score = 0;
        for (let i = first; i < end; i++) score += q[i] * key[i];
        row[s] = score / Math.sqrt(D);
      }
      softmax(row);
      for (let s = 0; s < S; s++) {
        const value = v[s], weight = row[s];
        for (let i = first; i < end; i++) y[i] += weight * value[i];
      }
    }
    return { y, weights };
  }
}

/** Two linear layers, four times as wide inside, with GELU between them. */
class MLP {
  constructor({ c_fc, c_proj }) {
    Object.assign(this, { c_fc, c_proj });
  }

  /** (C) → (C). */
  forward(x) {
    return linear(gelu(linear(x, this.c_fc.weight, this.c_fc.bias)), this.c_proj.weight, this.c_proj.bias);
  }
}

/** One layer: attention, then MLP. Each reads a normalised copy of the residual stream and adds its output to it. */
class Block {
  constructor(config, layer, { ln_1, attn, ln_2, mlp }) {
    Object.assign(this, { ln_1, ln_2, attn: new CausalSelfAttention(config, layer, attn), mlp: new MLP(mlp) });
  }

  /** (C) → the residual stream after this layer (C), and the attention weights (H, S). */
  forward(x, cache) {
    const { y, weights } = this.attn.forward(layerNorm(x, this.ln_1), cache);
    x = add(x, y);
    return { x: add(x, this.mlp.forward(layerNorm(x, this.ln_2))), weights };
  }
}

/** The GPT-2 language model. The output head is the token embedding again. */
export class GPT {
  constructor(config, transformer) {
    this.config = config;
    this.transformer = { ...transformer, h: transformer.h.map((part, layer) => new Block(config, layer, part)) };
  }

  newCache() {
    return new KVCache(this.config.n_layer);
  }

  /**
   * One more token. → the residual stream before the first layer and after each, (n_layer + 1) vectors (C), and the
   * attention weights of this position per layer, (H, S). Throws RangeError where the cache is full.
   */
  forward(token, cache) {
    const { wte, wpe, h } = this.transformer, position = cache.position;
    if (position >= this.config.block_size) throw new RangeError(`position ${position} is outside the context`);
    let x = add(embedding(wte.weight, token), embedding(wpe.weight, position));
    const stream = [x], attention = [];
    for (const block of h) {
      const out = block.forward(x, cache);
      x = out.x;
      stream.push(x);
      attention.push(out.weights);
    }
    return { stream, attention };
  }

  /** The residual stream of one position (C), after any layer → logits (V). */
  logits(x) {
    return linear(layerNorm(x, this.transformer.ln_f), this.transformer.wte.weight);
  }
}

/** The model of a description (model.json) and of the bytes of all weights. */
export function buildModel(description, bytes) {
  const transformer = {};
  for (const [name, tensor] of Object.entries(description.tensors)) {
    const path = name.split(".").slice(1), last = path.pop(); // transformer.h.0.ln_1.weight → h, 0, ln_1 | weight
    let place = transformer;
    for (const [i, key] of path.entries()) place = place[key] ??= key === "h" && i === 0 ? [] : {};
    place[last] = tensorOf(tensor, bytes);
  }
  return new GPT(description.config, transformer);
}

function tensorOf({ dtype, shape, offset, scales }, bytes) {
  const [rows, columns] = shape, size = shape.reduce((product, length) => product * length, 1);
  const values = new (dtype === "int8" ? Int8Array : Float32Array)(bytes, offset, size);
  if (shape.length === 1) return values;
  return { values, rows, columns, scales: dtype === "int8" ? new Float32Array(bytes, scales, rows) : null };
}
