// The panel of attention: a picture per head, and one head large, with the weights of one query.

import { make } from "./panels.js";

const LABELLED = 24; // rows of the large map that have room for their tokens, at most
const SMALL = 96; // pixels per side of a small map, at most

/** Draws the attention of a trace into the elements of the page. `choose(position)` is called for a row that is clicked. */
export class AttentionPanel {
  constructor({ heads, title, map, row, rows, query, weights }, choose) {
    Object.assign(this, { heads, title, map, row, rows, query, weights, choose });
    this.head = { layer: 0, head: 0 };
    this.canvases = [];
    map.addEventListener("pointermove", (event) => this.drawQuery(this.positionAt(event)));
    map.addEventListener("pointerleave", () => this.drawQuery(this.position));
    map.addEventListener("click", (event) => this.choose(this.positionAt(event)));
    heads.addEventListener("keydown", (event) => this.move(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawHeads());
  }

  /** Make a button per head. */
  build({ n_layer, n_head }) {
    this.heads.style.setProperty("--heads", n_head);
    const layers = Array.from({ length: n_layer }, (_, layer) => {
      const buttons = Array.from({ length: n_head }, (_, head) => {
        const canvas = make("canvas", { "aria-hidden": "true", width: 1, height: 1 });
        this.canvases.push({ canvas, layer, head });
        const button = make("button", { type: "button", "aria-label": `layer ${layer}, head ${head}` }, canvas);
        button.addEventListener("click", () => this.select({ layer, head }));
        return button;
      });
      const label = make("span", { "aria-hidden": "true" }, make("span", {}, "layer "), `${layer}`);
      return make("div", { class: "layer" }, label, make("div", {}, ...buttons));
    });
    this.heads.replaceChildren(...layers);
    this.buttons = this.canvases.map(({ canvas }) => canvas.parentElement);
    this.columns = n_head;
    this.mark();
  }

  /** Draw a trace, whose tokens are `labels`. */
  draw(trace, labels) {
    Object.assign(this, { trace, labels });
    this.rows.replaceChildren(...(labels.length > LABELLED ? [] : labels.map((label) => make("span", {}, label))));
    this.drawHeads();
  }

  /** Draw the small maps, and the large one. */
  drawHeads(small = this.canvases) {
    if (!this.trace) return;
    const colour = getComputedStyle(this.heads).getPropertyValue("--query");
    const [red, green, blue] = colour.match(/\w\w/g).map((two) => parseInt(two, 16));
    for (const { canvas, layer, head } of small) this.paint(canvas, layer, head, [red, green, blue], SMALL);
    this.paint(this.map.querySelector("canvas"), this.head.layer, this.head.head, [red, green, blue], this.trace.T);
  }

  /**
   * At most `most` pixels per side. A pixel is one weight, or the largest of a square of weights; the square root
   * makes small weights visible.
   */
  paint(canvas, layer, head, colour, most) {
    const { T } = this.trace, square = Math.ceil(T / most), side = Math.ceil(T / square);
    const largest = new Float32Array(side * side);
    for (let t = 0; t < T; t++) {
      const weights = this.trace.weights(t, layer, head), row = Math.floor(t / square) * side;
      for (let s = 0; s <= t; s++) {
        const pixel = row + Math.floor(s / square);
        if (weights[s] > largest[pixel]) largest[pixel] = weights[s];
      }
    }
    const image = new ImageData(side, side);
    for (let i = 0; i < largest.length; i++) image.data.set([...colour, 255 * Math.sqrt(largest[i])], 4 * i);
    Object.assign(canvas, { width: side, height: side });
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** Show one head large, if there is such a head. */
  select({ layer, head }) {
    if (!this.canvases.some((one) => one.layer === layer && one.head === head)) return;
    this.head = { layer, head };
    this.mark();
    this.drawHeads([]);
    this.drawQuery(this.position);
  }

  mark() {
    const chosen = this.head.layer * this.columns + this.head.head;
    for (const [i, button] of this.buttons.entries()) {
      button.setAttribute("aria-pressed", i === chosen);
      button.tabIndex = i === chosen ? 0 : -1;
    }
    this.title.textContent = `Layer ${this.head.layer}, head ${this.head.head}`;
  }

  /** Arrow keys go from head to head. */
  move(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    const next = this.head.layer * this.columns + this.head.head + (steps[event.key] ?? 0);
    if (!(event.key in steps) || !this.buttons[next]) return;
    event.preventDefault();
    this.select({ layer: Math.floor(next / this.columns), head: next % this.columns });
    this.buttons[next].focus();
  }

  positionAt(event) {
    const box = this.map.getBoundingClientRect(), T = this.trace?.T ?? 1;
    return Math.min(T - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * T)));
  }

  /** Follow the position that the page has chosen. */
  follow(position) {
    this.position = position;
    this.drawQuery(position);
  }

  /** Show the weights of one query: a bar, a number and a token per key. */
  drawQuery(position) {
    const { trace, labels } = this;
    if (!trace || position >= trace.T) return;
    Object.assign(this.row.style, { top: `${(100 * position) / trace.T}%`, height: `${100 / trace.T}%` });
    this.query.replaceChildren(
      make("span", { class: "query" }, "Query"),
      ` ${position}, `, make("span", { class: "chosen" }, labels[position]), ", looks at these ",
      make("span", { class: "key" }, "keys"), ":",
    );
    const weights = trace.weights(position, this.head.layer, this.head.head);
    const items = Array.from(weights, (weight, s) => {
      const bar = make("i", { "aria-hidden": "true" });
      bar.style.height = `${68 * weight}%`;
      return make("li", {}, weight.toFixed(2), bar, make("span", { class: "token" }, labels[s]));
    });
    this.weights.replaceChildren(...items);
    const strongest = items[weights.indexOf(Math.max(...weights))]; // comes into view
    this.weights.scrollLeft = strongest.offsetLeft - this.weights.clientWidth / 2;
  }
}
