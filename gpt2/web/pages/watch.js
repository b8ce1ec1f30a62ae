// The page of `gpt2 watch`, which asks for the new lines of the logs and shows them.

import { Chart, plainNumber, shortCount } from "./chart.js";
import { Run } from "./run.js";
import { element, isSaid, newestStep, numberOf, remaining, showNotes, showRuns, showSamples } from "./watch_lists.js";

const EVERY = 1000, HIDDEN_EVERY = 10_000, SPOKEN_EVERY = 15_000; // ms
const SHOWN_AT_FIRST = 8; // runs, the ones written to most recently
const AXES = { step: "step", tokens: "tokens", hours: "hours of training" };
const PANELS = [
  { name: "loss", title: "Loss", wide: true, skipsStart: true },
  { name: "lr", title: "Learning rate" },
  { name: "norm", title: "Gradient norm", hint: "logarithmic", smooth: true, log: true },
  { name: "tok_per_sec", title: "Tokens per second", hint: "all processes", smooth: true, fromZero: true, formatY: shortCount },
  { name: "hellaswag", title: "HellaSwag", hint: "accuracy by mean loss per token", points: true },
];

const runs = new Map();
const controls = document.getElementById("controls");
const view = { x: "step", y: "nats", chosen: false, log: false, full: false, zoom: null, at: null };
const shownRuns = () => [...runs.values()].filter((run) => run.shown && run.info);

for (const panel of PANELS) {
  const figure = element("figure", { className: panel.wide ? "wide" : "", hidden: true });
  const caption = element("figcaption", { textContent: `${panel.title} ` });
  panel.hintText = caption.appendChild(element("span", { className: "quiet", textContent: panel.hint ?? "" }));
  const box = element("div", { className: "chart" });
  const canvas = element("canvas", { ariaHidden: "true" });
  const overlay = element("canvas", { className: "overlay", tabIndex: 0, role: "application", ariaRoleDescription: "chart" });
  overlay.setAttribute("aria-describedby", "help");
  panel.readout = element("div", { className: "readout", hidden: true });
  box.append(canvas, overlay, panel.readout);
  figure.append(caption, box);
  document.getElementById("charts").append(figure);
  const changed = (change) => changeView(change, panel);
  Object.assign(panel, { figure, overlay, chart: new Chart({ canvas, overlay, changed, ...panel }) });
}

function changeView(change, panel) {
  if ("zoom" in change) {
    view.zoom = change.zoom;
    if (view.zoom && !(view.at >= view.zoom[0] && view.at <= view.zoom[1])) view.at = null;
    document.getElementById("whole").hidden = !view.zoom;
    drawCharts();
  } else view.at = change.at;
  for (const each of PANELS) {
    each.chart.at = view.at;
    if (!each.figure.hidden) each.chart.drawCursor();
    showReadout(each, each === panel && view.at !== null);
  }
  if (change.told) document.getElementById("spoken").textContent = "zoom" in change ? extent(panel.chart) : panel.readout.innerText.replaceAll("\n", " ");
}

function extent({ range, formatX }) {
  return view.zoom ? `${AXES[view.x]} ${range.map(formatX).join(" to ")}` : "the whole run";
}

function showReadout({ chart, readout }, isShown) {
  const found = isShown ? chart.read(view.at) : [];
  readout.hidden = !found.length;
  if (!found.length) return;
  const lines = found.map(({ curve, y }) => {
    const line = element("div");
    const name = element("span", { className: "name", textContent: runs.size > 1 ? curve.label : curve.kind });
    line.append(curve.run.swatch(), name, element("span", { className: "value", textContent: chart.formatY(y) }));
    return line;
  });
  readout.replaceChildren(element("p", { textContent: `${AXES[view.x]} ${chart.formatX(nearest(found, view.at))}` }), ...lines);
  const [low, high] = chart.range, isLeft = view.at < (low + high) / 2;
  Object.assign(readout.style, isLeft ? { left: "auto", right: "1.2rem" } : { left: "4.2rem", right: "auto" });
}

function nearest(found, x) {
  return found.reduce((best, { x: one }) => (Math.abs(one - x) < Math.abs(best - x) ? one : best), Infinity);
}

function curvesOf({ name, smooth, points }) {
  const curves = [];
  for (const run of shownRuns()) {
    if (name === "tok_per_sec" && run.info.state === "published") continue; // measured on another machine
    const unit = name === "loss" && view.y === "bits" ? run.bitsPerNat : 1;
    if (!unit) continue;
    const kinds = name === "loss" ? [["loss", "training", { smooth: true }], ["val_loss", "validation", { points: true, dash: [4, 4] }]]
      : [[name, PANELS.find((panel) => panel.name === name).title, { smooth, points }]];
    for (const [column, kind, options] of kinds) {
      const curve = run.curve(column, view.x, options);
      const isBackground = run.info.state === "published" && !view.full;
      if (curve) curves.push({ ...curve, kind, unit, isBackground, label: kind === "validation" ? `${curve.name}, validation` : curve.name });
    }
  }
  return curves;
}

function drawCharts() {
  for (const panel of PANELS) {
    const { chart, figure, overlay, name, title } = panel;
    chart.curves = curvesOf(panel);
    figure.hidden = !chart.curves.length && !panel.wide;
    if (name === "loss") chart.log = view.log;
    chart.formatX = view.x === "tokens" ? shortCount : plainNumber;
    chart.zoom = view.zoom;
    const names = new Set(chart.curves.map((curve) => curve.run.info.name));
    overlay.ariaLabel = `${title} by ${AXES[view.x]} of ${[...names].join(", ") || "no run"}`;
    if (!figure.hidden) chart.draw();
    if (name === "loss") panel.hintText.textContent = hintOfLoss(chart);
  }
  const panels = PANELS.filter(({ figure, wide }) => !wide && !figure.hidden).length;
  document.getElementById("charts").classList.toggle("three", panels === 3);
  showRemarks();
}

function hintOfLoss({ curves, isCut }) {
  const parts = [view.y === "bits" ? "bits per byte" : "nats per token"];
  if (curves.some((curve) => curve.mean > 1)) parts.push("faint: every step", "line: running mean over a fiftieth of the run");
  if (curves.some((curve) => curve.kind === "validation")) parts.push("circles, dashed: validation");
  if (isCut) parts.push("the beginning may lie above");
  return parts.join("; ");
}

function showRemarks() {
  const remarks = [], shown = shownRuns().filter((run) => run.counts.some((count) => count));
  const sizes = new Map(shown.filter((run) => run.info.vocab_size).map((run) => [run.info.vocab_size, run]));
  if (view.y === "nats" && sizes.size > 1) {
    const [[one, first], [other, second]] = sizes;
    const mend = shown.every((run) => run.bitsPerNat) ? "bits per byte do." : "and not all of these logs say bits per byte.";
    remarks.push(`${first.info.name} has a vocabulary of ${one.toLocaleString("en")} tokens, ${second.info.name} one of `
      + `${other.toLocaleString("en")}. Losses in nats per token do not compare them, ${mend}`);
  }
  const lacking = (says, what) => {
    const names = shown.filter((run) => !says(run)).map((run) => run.info.name);
    if (names.length) remarks.push(`Not drawn, because the log does not say ${what}: ${names.join(", ")}.`);
  };
  if (view.y === "bits") lacking((run) => run.bitsPerNat, "bits per byte");
  if (view.x === "tokens") lacking((run) => run.info.batch_tokens, "how many tokens a step has");
  if (view.x === "hours") lacking((run) => ["loss", "val_loss"].some((name) => run.curve(name, "hours")), "how long a step took");
  showSentences("remarks", remarks);
}

function showSentences(id, sentences) {
  const box = document.getElementById(id);
  if (box.dataset.shown === JSON.stringify(sentences)) return;
  box.dataset.shown = JSON.stringify(sentences);
  box.replaceChildren(...sentences.map((text) => element("p", { className: "note", textContent: text })));
}

function takeInfo({ runs: infos, x }) {
  const known = new Set(infos.map((info) => info.id)), isFirst = !runs.size;
  if (isFirst) controls.elements.x.value = view.x = x;
  for (const id of runs.keys()) if (!known.has(id)) runs.delete(id);
  for (const info of infos) {
    if (!runs.has(info.id)) runs.set(info.id, new Run(info.id, freeNumber()));
    runs.get(info.id).info = info;
  }
  document.getElementById("full").hidden = !infos.some((info) => info.state === "published");
  if (isFirst && infos.length > SHOWN_AT_FIRST) {
    const recent = [...runs.values()].sort((a, b) => a.info.age - b.info.age).slice(0, SHOWN_AT_FIRST);
    for (const run of runs.values()) run.shown = recent.includes(run) || run.info.state === "published";
  }
  const problems = infos.map((info) => info.problem).filter(Boolean).map((problem) => `${problem}. The page shows it as soon as it is there.`);
  showSentences("problems", problems);
}

function freeNumber() {
  const taken = new Set([...runs.values()].map((run) => run.number));
  let number = 0;
  while (taken.has(number)) number++;
  return number;
}

// The bytes that the server sends; null if it does not answer, or if the run has just gone.
async function ask(address) {
  try {
    const answer = await fetch(address);
    return answer.ok ? await answer.arrayBuffer() : null;
  } catch {
    showSentences("problems", ["gpt2 watch does not answer. Start it again, and this page goes on."]);
    return null;
  }
}

async function fetchCurves() {
  const lacking = shownRuns().filter((run) => run.lacks());
  const answers = await Promise.all(lacking.map((run) => ask(run.address())));
  return lacking.map((run, i) => [run, answers[i]]).filter(([, buffer]) => buffer);
}

// Only one update runs at a time.
function update() {
  update.running ??= askAndShow().finally(() => (update.running = null));
  return update.running;
}

async function askAndShow() {
  const info = await ask("watch/runs");
  if (!info) return;
  takeInfo(JSON.parse(new TextDecoder().decode(info)));
  const answers = await fetchCurves();
  const start = performance.now();
  for (const [run, buffer] of answers) run.take(buffer);
  show(answers.length > 0);
  performance.clearMeasures("update");
  performance.measure("update", { start, detail: answers.length });
}

function show(isNew) {
  chooseUnit();
  showRuns(runs, () => update().then(() => show(true)));
  showNewest();
  if (!isNew) return;
  drawCharts();
  showSamples(shownRuns());
  showNotes(shownRuns());
}

// Until the reader chooses, the unit is bits per byte where vocabularies differ and all logs have it.
function chooseUnit() {
  const shown = shownRuns().filter((run) => run.counts[0] || run.counts[1]);
  const sizes = new Set(shown.map((run) => run.info.vocab_size).filter(Boolean));
  if (!view.chosen) controls.elements.y.value = view.y = sizes.size > 1 && shown.every((run) => run.bitsPerNat) ? "bits" : "nats";
}

function showNewest() {
  const hasSteps = ({ info }) => newestStep(info) !== undefined && info.state !== "published";
  const run = shownRuns().filter(hasSteps).sort((a, b) => a.info.age - b.info.age)[0];
  if (!run) {
    const isHidden = [...runs.values()].some(hasSteps);
    document.getElementById("newest").textContent = isHidden ? "No run is chosen." : "No step has been logged yet.";
    return;
  }
  const { name, steps } = run.info;
  const number = (column) => numberOf(run.info, column);
  const parts = [`step ${number("step")}${steps ? ` of ${steps.toLocaleString("en")}` : ""}`];
  if (isSaid(run.info, "loss")) parts.push(`loss ${number("loss")}`);
  if (isSaid(run.info, "val_loss")) parts.push(`validation loss ${number("val_loss")}`);
  if (isSaid(run.info, "tok_per_sec")) parts.push(`${number("tok_per_sec")} tokens/s`);
  const left = remaining(run.info);
  const text = `${name}: ${parts.join(", ")}${left ? `, about ${left} left` : ""}`;
  document.getElementById("newest").textContent = text;
  document.title = `${parts.slice(0, 2).join(", ")} · ${name}`;
  const spoken = document.getElementById("spoken"), now = performance.now();
  if (text !== showNewest.text && !(now - showNewest.at < SPOKEN_EVERY)) {
    spoken.textContent = text;
    Object.assign(showNewest, { text, at: now });
  }
}

function follow() {
  return update().finally(() => setTimeout(follow, document.hidden ? HIDDEN_EVERY : EVERY));
}

controls.addEventListener("change", ({ target }) => {
  if (target.name === "x") Object.assign(view, { x: target.value, zoom: null, at: null });
  if (target.name === "y") Object.assign(view, { y: target.value, chosen: true });
  if (["log", "full"].includes(target.name)) view[target.name] = target.checked;
  changeView({ zoom: view.zoom }, PANELS[0]);
});
controls.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("whole").addEventListener("click", () => {
  changeView({ zoom: null }, PANELS[0]);
  PANELS[0].overlay.focus(); // the button is hidden now
});
document.addEventListener("visibilitychange", () => document.hidden || update());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
new ResizeObserver(drawCharts).observe(document.getElementById("charts"));
follow();
