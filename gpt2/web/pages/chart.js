// A chart of long curves on a canvas. The time to draw one depends on its width in pixels more than on its length.

import { lowerBound } from "./column.js";

const LEFT = 58, RIGHT = 14, TOP = 8, BOTTOM = 26;
const MARK = 4; // radius of a point, with its line
const MOST_POINTS = 80; // with marks; a curve of more points is drawn without them
const MINUS = "\u2212";

// Round numbers between two others: 1, 2 or 5 times a power of ten apart, at most about `count`.
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => (first + i) * step);
}

function logTicks(low, high, count) {
  if (high / low < 15) return ticks(low, high, count).filter((value) => value > 0);
  const decades = Math.log10(high / low);
  const factors = decades * 3 <= 2 * count ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / count)), found = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
    if (power % every === 0) found.push(...factors.map((factor) => factor * 10 ** power));
  return found.filter((value) => value >= low && value <= high);
}

// A count with three digits and a unit: 1310720 → 1.31M.
export function shortCount(number) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(number) >= size) return `${Number((number / size).toPrecision(3))}${letter}`;
  return `${Number(number.toPrecision(3))}`;
}

export function plainNumber(number) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e6 || size < 1e-3) return number.toExponential(2).replace(/\.?0+e/, "e").replace("-", MINUS).replace("e+", "e");
  return Number(number.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 6 });
}

// curves: [{ name, colour, dash, x: Column, y: Column, scale: of x, unit: of y, mean: window or 0, points, isBackground }]
export class Chart {
  // `canvas` shows the curves. `overlay` lies on top of it and shows the cursor. `changed` receives {zoom} or {at},
  // with `told` if a screen reader is to hear it. `skipsStart`: the vertical axis is fitted to the curves after their start.
  constructor({ canvas, overlay, changed, log = false, fromZero = false, skipsStart = false, formatY = plainNumber }) {
    Object.assign(this, { canvas, overlay, changed, log, fromZero, skipsStart, formatY });
    this.curves = [];
    this.zoom = this.at = this.drag = null;
    this.formatX = plainNumber;
    this.#listen();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !clientHeight) return;
    for (const canvas of [this.canvas, this.overlay]) {
      const [wide, high] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
      if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    }
    Object.assign(this, { width: clientWidth - LEFT - RIGHT, height: clientHeight - TOP - BOTTOM });
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, clientWidth, clientHeight);
    this.range = this.zoom ?? this.#whole();
    if (this.range) {
      const drawn = this.curves.map((curve) => ({ curve, bins: this.#bins(curve) }));
      this.#findHeights(drawn);
      this.#axes();
      this.#lines(drawn);
    }
    this.drawCursor();
  }

  drawCursor() {
    const context = this.overlay.getContext("2d"), ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.overlay.width, this.overlay.height);
    if (!this.range) return;
    const style = getComputedStyle(this.overlay);
    if (this.drag?.moved) {
      context.fillStyle = style.getPropertyValue("--mark-fill");
      context.globalAlpha = 0.5;
      context.fillRect(Math.min(this.drag.from, this.drag.to), TOP, Math.abs(this.drag.to - this.drag.from), this.height);
      context.globalAlpha = 1;
    } else if (this.at !== null && this.at >= this.range[0] && this.at <= this.range[1]) {
      context.fillStyle = style.getPropertyValue("--grey");
      context.fillRect(Math.round(this.#left(this.at)), TOP, 1, this.height);
      for (const { curve, x, y } of this.read(this.at)) {
        context.fillStyle = style.getPropertyValue(curve.colour);
        context.beginPath();
        context.arc(this.#left(x), this.#top(y), 3.5, 0, 2 * Math.PI);
        if (x >= this.range[0] && x <= this.range[1] && this.#top(y) >= TOP) context.fill();
      }
    }
  }

  // The points nearest to x: [{ curve, x, y }]. Curves that end far before x, or begin far after it, are left out.
  read(x) {
    const found = [];
    for (const curve of this.curves) {
      const { values, n } = curve.x, wanted = x / curve.scale;
      let i = lowerBound(values, n, wanted);
      if (i > 0 && (i === n || wanted - values[i - 1] <= values[i] - wanted)) i--;
      if (i >= n || !Number.isFinite(curve.y.values[i])) continue;
      const far = Math.abs(values[i] - wanted) * curve.scale > 0.02 * (this.range[1] - this.range[0]);
      if (far && (i === 0 || i === n - 1)) continue;
      found.push({ curve, x: values[i] * curve.scale, y: curve.y.values[i] * curve.unit });
    }
    return found;
  }

  // The range from the first point to the last one of all curves that are not in the background.
  #whole() {
    const own = this.curves.filter((curve) => !curve.isBackground);
    const lows = [], highs = [];
    for (const { x, scale } of own.length ? own : this.curves) {
      lows.push(x.values[0] * scale);
      highs.push(x.values[x.n - 1] * scale);
    }
    const low = Math.min(...lows), high = Math.max(...highs);
    if (!Number.isFinite(low) || !Number.isFinite(high)) return null;
    return high > low ? [low, high] : [low, low + 1];
  }

  // Per pixel column that has points: where it is, its first, lowest, highest and last value, and its mean curve.
  #bins({ x, y, scale, unit, mean }) {
    const [low, high] = this.range, perPixel = this.width / (high - low), bins = [];
    const from = Math.max(0, lowerBound(x.values, x.n, low / scale) - 1);
    const to = Math.min(x.n, lowerBound(x.values, x.n, high / scale) + 1);
    let bin = null, column = NaN, begin = from;
    const close = (end) => {
      if (!bin || !(mean > 1)) return;
      const smooth = unit * y.mean((begin + end) >> 1, mean);
      bin.mean = Number.isFinite(smooth) ? smooth : bin.last;
    };
    for (let i = from; i < to; i++) {
      const left = (x.values[i] * scale - low) * perPixel, value = y.values[i] * unit;
      if (!Number.isFinite(value) || (this.log && value <= 0)) continue;
      if (Math.floor(left) !== column) {
        close(i);
        [column, begin] = [Math.floor(left), i];
        bins.push((bin = { left: LEFT + left, first: value, low: value, high: value, last: value }));
      } else {
        if (value < bin.low) bin.low = value;
        if (value > bin.high) bin.high = value;
        bin.last = value;
      }
    }
    close(to);
    return bins;
  }

  // The lowest and the highest value to show: of all means and points, and of most of the single values.
  #findHeights(drawn) {
    let low = Infinity, high = -Infinity;
    // the steep fall at the beginning of a run would flatten the rest
    this.isCut = this.skipsStart && !this.zoom && drawn.some(({ bins }) => bins.length > 100);
    const start = LEFT + (this.isCut ? this.width / 50 : -1);
    for (const { curve, bins } of drawn) {
      const inside = bins.filter(({ left }) => left >= start && left <= LEFT + this.width + 1);
      const smooth = curve.mean > 1, cut = smooth ? Math.floor(inside.length / 50) : 0;
      const lows = Float64Array.from(inside, (bin) => bin.low).sort();
      const highs = Float64Array.from(inside, (bin) => bin.high).sort();
      if (!inside.length) continue;
      low = Math.min(low, lows[cut], ...(smooth ? inside.map((bin) => bin.mean) : []));
      high = Math.max(high, highs[highs.length - 1 - cut], ...(smooth ? inside.map((bin) => bin.mean) : []));
    }
    if (!Number.isFinite(low)) [low, high] = [this.log ? 0.1 : 0, 1];
    if (this.fromZero) low = Math.min(0, low);
    const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
    if (high - low < 1e-4 * size) [low, high] = [low - size / 10, high + size / 10]; // a constant, but for rounding
    const margin = this.log ? (high / low) ** 0.05 : 0.05 * (high - low);
    if (this.log) this.heights = [low / margin, high * margin];
    else this.heights = [this.fromZero && low === 0 ? 0 : low - margin, high + margin];
  }

  #left(x) {
    return LEFT + ((x - this.range[0]) / (this.range[1] - this.range[0])) * this.width;
  }

  #top(y) {
    const [low, high] = this.heights;
    const share = this.log ? Math.log(y / low) / Math.log(high / low) : (y - low) / (high - low);
    return TOP + (1 - share) * this.height;
  }

  #axes() {
    const { context } = this, style = getComputedStyle(this.canvas);
    context.font = `12px ${style.fontFamily}`;
    context.fillStyle = style.getPropertyValue("--grey");
    context.strokeStyle = style.getPropertyValue("--border");
    context.lineWidth = 1;
    const line = (...points) => {
      context.beginPath();
      context.moveTo(points[0], points[1]);
      context.lineTo(points[2], points[3]);
      context.stroke();
    };
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of (this.log ? logTicks : ticks)(...this.heights, Math.max(2, this.height / (this.log ? 28 : 45)))) {
      const top = Math.round(this.#top(value)) + 0.5;
      line(LEFT, top, LEFT + this.width, top);
      context.fillText(this.formatY(value), LEFT - 8, top);
    }
    context.textBaseline = "top";
    for (const value of ticks(...this.range, Math.max(2, this.width / 95))) {
      const text = this.formatX(value), half = context.measureText(text).width / 2, left = this.#left(value);
      line(Math.round(left) + 0.5, TOP + this.height, Math.round(left) + 0.5, TOP + this.height + 4);
      context.textAlign = left + half > LEFT + this.width + RIGHT ? "right" : "center";
      context.fillText(text, context.textAlign === "right" ? LEFT + this.width + RIGHT : left, TOP + this.height + 8);
    }
  }

  #lines(drawn) {
    const { context } = this, style = getComputedStyle(this.canvas);
    context.save();
    context.beginPath();
    context.rect(LEFT - MARK, 0, this.width + 2 * MARK, TOP + this.height + 1);
    context.clip();
    context.lineJoin = "round";
    for (const faint of [true, false])
      for (const { curve, bins } of drawn) {
        if (faint && !(curve.mean > 1)) continue;
        context.strokeStyle = style.getPropertyValue(curve.colour);
        context.globalAlpha = faint ? 0.28 : 1;
        context.lineWidth = faint ? 1 : 1.75;
        context.setLineDash(faint ? [] : curve.dash);
        context.beginPath();
        for (const bin of bins)
          for (const value of faint || !(curve.mean > 1) ? [bin.first, bin.low, bin.high, bin.last] : [bin.mean])
            context.lineTo(bin.left, this.#top(value));
        context.stroke();
        context.setLineDash([]);
        if (!faint && curve.points && bins.length <= MOST_POINTS) this.#points(bins, style.getPropertyValue("--card"));
      }
    context.restore();
  }

  #points(bins, fill) {
    const { context } = this;
    context.fillStyle = fill;
    for (const bin of bins) {
      context.beginPath();
      context.arc(bin.left, this.#top(bin.last), bins.length < 60 ? 3.25 : 2, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }

  #listen() {
    const inside = (left) => Math.min(LEFT + this.width, Math.max(LEFT, left));
    const value = (left) => this.range[0] + ((left - LEFT) / this.width) * (this.range[1] - this.range[0]);
    const on = (name, act) => this.overlay.addEventListener(name, (event) => this.range && act(event));
    on("pointerdown", (event) => {
      if (event.button !== 0) return;
      const left = inside(event.offsetX);
      this.drag = { from: left, to: left, moved: false };
      this.overlay.setPointerCapture(event.pointerId);
      this.changed({ at: value(left), told: false }); // a finger touches the chart without a move before
    });
    on("pointermove", (event) => {
      const left = inside(event.offsetX);
      if (this.drag) Object.assign(this.drag, { to: left, moved: this.drag.moved || Math.abs(left - this.drag.from) > 6 });
      this.changed({ at: value(left), told: false });
    });
    on("pointerup", () => {
      const drag = this.drag;
      this.drag = null;
      if (drag?.moved && Math.abs(drag.to - drag.from) > 2) this.changed({ zoom: [value(drag.from), value(drag.to)].sort((a, b) => a - b) });
    });
    on("pointercancel", () => (this.drag = null));
    on("pointerleave", (event) => event.pointerType === "mouse" && this.changed({ at: null, told: false }));
    on("dblclick", () => this.changed({ zoom: null }));
    on("blur", () => this.changed({ at: null, told: false }));
    on("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const [low, high] = this.range, span = high - low, at = Math.min(high, Math.max(low, this.at ?? (low + high) / 2));
    const by = span * (event.shiftKey ? 0.1 : 0.01);
    const moves = { ArrowLeft: at - by, ArrowRight: at + by, Home: low, End: high };
    const zooms = { "+": 0.5, "=": 0.5, "-": 2, [MINUS]: 2 };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) this.changed({ at: Math.min(high, Math.max(low, moves[event.key])), told: true });
    else if (event.key in zooms) {
      const [first, last] = this.#whole(), wide = Math.max(span * zooms[event.key], (last - first) / 1e6);
      const from = Math.max(first, at - wide * ((at - low) / span)), to = Math.min(last, from + wide);
      this.changed({ zoom: to - from >= last - first ? null : [from, to], told: true });
    } else if (event.key === "Escape" || event.key === "0") this.changed({ zoom: null, told: true });
    else return;
    event.preventDefault();
  }
}
