// A run on the page: its columns, which grow, and the style of its curves.

import { Column } from "./column.js";

const COLOURS = ["--query", "--key", "--value", "--gradient", "--communication", "--residual", "--ink"];
const DASHES = [[], [7, 3], [2, 3]];
const BORDERS = ["solid", "dashed", "dotted"];
const MEAN_OF = 50; // the running mean covers a fiftieth of the run
const KEPT = 200; // samples and notes

export class Run {
  constructor(id, number) {
    const style = Math.floor(number / COLOURS.length) % DASHES.length;
    Object.assign(this, { id, number, colour: COLOURS[number % COLOURS.length], dash: DASHES[style], border: BORDERS[style] });
    Object.assign(this, { generation: 0, counts: [0, 0, 0, 0], columns: {}, entries: [], shown: true });
  }

  // Whether the server has rows that the page lacks.
  lacks() {
    return this.generation !== this.info.generation || `${this.counts}` !== `${this.info.counts}`;
  }

  address() {
    const asked = new URLSearchParams({ run: this.id, generation: this.generation, since: this.counts });
    return `watch/data?${asked}`;
  }

  // Take what `gpt2.web.watch.encode` has sent.
  take(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    let at = 4 + length;
    for (const { columns, from, rows } of header.tables)
      for (const name of columns) {
        (this.columns[name] ??= new Column()).put(from, new Float64Array(buffer, at, rows));
        at += 8 * rows;
      }
    if (header.generation !== this.generation) this.entries = [];
    this.entries = [...this.entries, ...header.entries].slice(-KEPT);
    Object.assign(this, { generation: header.generation, counts: header.counts });
    this.bitsPerNat = this.#bitsPerNat();
  }

  // How to draw the column `y` against steps, tokens or hours; null if the log does not contain them.
  curve(y, axis, options = {}) {
    const prefix = { val_loss: "val_", hellaswag: "hellaswag_" }[y] ?? "";
    const x = this.columns[prefix + (axis === "hours" ? "hours" : "step")];
    const scale = axis === "tokens" ? this.info.batch_tokens : 1;
    if (!x?.n || !scale || !Number.isFinite(x.values[x.n - 1]) || !has(this.columns[y])) return null;
    const mean = options.smooth ? Math.max(1, Math.floor(x.n / MEAN_OF)) : 0;
    const points = options.points || (prefix === "" && x.n < 30);
    const { colour, dash, info } = this;
    return { run: this, name: info.name, colour, dash: options.dash ?? dash, x, y: this.columns[y], scale, unit: 1, mean, points };
  }

  // 1 nat per token in bits per byte, the median of the validations; null if the log has no bits per byte.
  #bitsPerNat() {
    const { val_loss: nats, bits_per_byte: bits } = this.columns;
    const ratios = Array.from({ length: nats?.n ?? 0 }, (_, i) => bits.values[i] / nats.values[i]);
    const known = ratios.filter(Number.isFinite).sort((a, b) => a - b);
    return known.length ? known[known.length >> 1] : null;
  }

  swatch() {
    const line = document.createElement("span");
    line.className = "swatch";
    line.ariaHidden = "true";
    line.style.borderTopStyle = this.border;
    line.style.borderTopColor = `var(${this.colour})`;
    return line;
  }
}

// Whether any number is finite. The search starts at the end, where it usually succeeds at once.
function has(column) {
  for (let i = (column?.n ?? 0) - 1; i >= 0; i--) if (Number.isFinite(column.values[i])) return true;
  return false;
}
