// The panels of tokens, residual stream, logit lens and next token. Whatever comes from a text is set as text.

import { order, probabilities } from "./sampling.js";
import { hex, shownBytes } from "./tokenizer.js";

const SHOWN = 20; // tokens of the distribution
const OTHERS = 64; // faint lines of other positions
const MOST_BYTES = 64; // of a token, that are shown one by one

/** A new element with attributes and children; a child that is a string is text. */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A probability in percent. */
export function percent(p) {
  if (p === 0 || p === 1) return `${100 * p} %`;
  return p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
}

/** Draw the tokens as a list to choose from; the first of several lines is the token, the second its id. */
export function drawTokens(list, ids, tokenizer) {
  const options = ids.map((id, position) =>
    make(
      "div",
      { role: "option", class: "token", "data-position": position, tabindex: -1, "aria-selected": false },
      tokenizer.shown(id),
      make("small", {}, `${id}`),
    ),
  );
  list.replaceChildren(...options);
}

/** Draw the bytes of a token, and the merges that made it. */
export function drawHistory(place, id, tokenizer) {
  const bytes = tokenizer.bytes(id), merges = tokenizer.history(id);
  const title = make("h3", {}, `Token ${id}: `, make("span", { class: "chosen" }, tokenizer.shown(id)));
  if (!bytes.length) {
    const text = "A token of its own that stands between documents. It has no bytes and no merges.";
    return place.replaceChildren(title, make("p", { class: "quiet" }, text));
  }
  const cells = Array.from(bytes.subarray(0, MOST_BYTES), (byte) =>
    make("li", {}, shownByte(byte), make("small", {}, hex(byte))),
  );
  const steps = merges.map(({ left, right, number }) =>
    make("li", {}, `${shownBytes(left)} + ${shownBytes(right)} `, make("small", {}, `merge ${number}`)),
  );
  const many = `${bytes.length} ${bytes.length === 1 ? "byte" : "bytes"}`;
  const made = merges.length ? `, put together by ${merges.length} merge${merges.length > 1 ? "s" : ""}:` : ", never merged.";
  const sentence = make("p", { class: "quiet" }, many + made);
  const list = merges.length ? [make("ol", { class: "merges", "aria-label": "merges" }, ...steps)] : [];
  place.replaceChildren(title, make("ol", { class: "bytes", "aria-label": "bytes" }, ...cells), sentence, ...list);
}

const shownByte = (byte) => (byte < 0x80 && byte !== 0x7f && byte > 0x1f ? shownBytes(String.fromCharCode(byte)) : "·");

/** Draw the norm of the residual stream by depth: of all positions faintly, of one in colour with its numbers. */
export function drawNorms(place, trace, position) {
  const [width, height, left, bottom, top] = [320, 190, 20, 24, 14];
  const own = trace.streamNorms(position), depth = own.length - 1;
  const first = Math.max(0, trace.T - OTHERS);
  const others = Array.from({ length: trace.T - first }, (_, i) => trace.streamNorms(first + i));
  // the first position is often many times as long as the others
  const largest = 1.08 * Math.max(...own, ...others.slice(first === 0 ? 1 : 0).flatMap((one) => [...one]));
  const x = (i) => left + ((width - left - 8) * i) / depth;
  const y = (value) => top + (height - bottom - top) * (1 - Math.min(1.1, value / largest));
  const path = (values) => Array.from(values, (value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const numbers = Array.from(own, (value) => value.toFixed(1));
  const label = `norm of the residual stream: ${numbers[0]} before layer 0, then ${numbers.slice(1).join(", ")}`;
  const every = Math.ceil(own.length / 10); // labels that have room
  place.replaceChildren(
    make(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      make("line", { class: "axis", x1: left, x2: width - 8, y1: y(0), y2: y(0) }),
      ...others.map((values) => make("path", { class: "other", d: path(values) })),
      make("path", { class: "line", d: path(own) }),
      ...numbers.flatMap((number, i) => {
        const dot = make("circle", { cx: x(i), cy: y(own[i]), r: 3 });
        if (i % every) return [dot];
        const name = i ? `${i - 1}` : "embed.";
        const value = make("text", { class: "value", "aria-hidden": "true", x: x(i), y: y(own[i]) - 8, "text-anchor": "middle" }, number);
        return [dot, value, make("text", { "aria-hidden": "true", x: x(i), y: height - 8, "text-anchor": "middle" }, name)];
      }),
    ),
    make("p", { class: "quiet" }, "From left to right: the embedding, then the stream after each layer. Faint lines: other positions."),
  );
}

/** Draw the likeliest tokens after each layer, with their probabilities. */
export function drawLens(table, lens, tokenizer) {
  const head = ["after", ...lens[0].map((_, rank) => `${rank + 1}.`)];
  const rows = lens.map((tokens, depth) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, depth ? `layer ${depth - 1}` : "embedding"),
      ...tokens.map(({ token, probability }) => {
        const cell = make("td", {}, tokenizer.shown(token), make("small", {}, percent(probability)));
        cell.style.background = `color-mix(in srgb, var(--value-fill) ${Math.round(100 * probability ** 0.5)}%, transparent)`;
        return cell;
      }),
    ),
  );
  const titles = head.map((title) => make("th", { scope: "col" }, title));
  table.replaceChildren(make("thead", {}, make("tr", {}, ...titles)), make("tbody", {}, ...rows));
}

/** Draw the likeliest next tokens: their probabilities by the model, and under a rule. */
export function drawNext(place, logits, rule, tokenizer) {
  const plain = probabilities(logits), ruled = probabilities(logits, rule);
  const tokens = order(logits).subarray(0, SHOWN);
  const scale = Math.max(plain[tokens[0]], ruled[tokens[0]]);
  const rows = Array.from(tokens, (token) => {
    const bars = make("td", { class: "bars", "aria-hidden": "true" });
    for (const [kind, p] of [["model", plain[token]], ["rule", ruled[token]]]) {
      const bar = make("div", { class: `bar ${kind}` });
      bar.style.width = `${(100 * p) / scale}%`;
      bars.append(bar);
    }
    const name = make("th", { scope: "row", class: "mono" }, tokenizer.shown(token));
    const numbers = [plain[token], ruled[token]].map((p) => make("td", { class: "number" }, percent(p)));
    return make("tr", { class: ruled[token] ? "in" : "out", "data-token": token, "data-p": ruled[token] }, name, bars, ...numbers);
  });
  const titles = ["token", "", "model", "sliders"].map((title, i) => {
    const hidden = i === 1 ? [make("span", { class: "visually-hidden" }, "bars")] : [title];
    return make("th", { scope: "col", class: i > 1 ? "number" : "" }, ...hidden);
  });
  const kept = ruled.reduce((count, p) => count + (p > 0), 0);
  const text = `${kept.toLocaleString("en")} of ${ruled.length.toLocaleString("en")} tokens can be drawn.`;
  const table = make("table", { class: "next" }, make("thead", {}, make("tr", {}, ...titles)), make("tbody", {}, ...rows));
  place.replaceChildren(table, make("p", { class: "quiet" }, text));
}
