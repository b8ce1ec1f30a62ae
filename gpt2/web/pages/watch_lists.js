// The lists of the page of `gpt2 watch`: newest values, samples, notes. All text goes in as text, never as markup.

import { plainNumber } from "./chart.js";

const COLUMNS = {
  step: ["Step", (n) => n.toLocaleString("en")],
  loss: ["Loss", (n) => n.toFixed(4)],
  val_loss: ["Validation", (n) => n.toFixed(4)],
  bits_per_byte: ["Bits per byte", (n) => n.toFixed(4)],
  lr: ["Learning rate", plainNumber],
  norm: ["Gradient norm", (n) => n.toPrecision(3)],
  tok_per_sec: ["Tokens/s", (n) => Math.round(n).toLocaleString("en")],
  hellaswag: ["HellaSwag", (n) => n.toFixed(4)],
};
const LOSSES = ["loss", "val_loss"];
const QUIET = 60; // a run is quiet after this many seconds without a line, or after ten mean steps if they take longer
const MORE_SAMPLES = 6, NOTES = 30;

export const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// "1 h 20 min"
export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (minutes < 60) return `${minutes} min`;
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

function secondsPerStep({ last }) {
  return last.step > 0 && last.hours > 0 ? (3600 * last.hours) / last.step : NaN;
}

function isQuiet(info) {
  return info.age > Math.max(QUIET, 10 * (secondsPerStep(info) || 0));
}

// The remaining time at the mean speed; empty if the run is not training, or its log does not say its length.
export function remaining(info) {
  const seconds = (info.steps - 1 - info.last.step) * secondsPerStep(info);
  return info.state === "there" && !isQuiet(info) && info.steps && seconds > 0 ? duration(seconds) : "";
}

function stateOf(info) {
  const fixed = { missing: "waiting for its log", gone: "log deleted", empty: "no step yet", finished: "finished", published: "published" };
  if (info.state in fixed) return fixed[info.state];
  return isQuiet(info) ? `quiet for ${duration(info.age)}` : "training";
}

// The newest values, one row per run, whose check box shows or hides it. `toggled` is called after that.
export function showRuns(runs, toggled) {
  const table = document.getElementById("runs"), [head, body] = [table.tHead, table.tBodies[0]];
  const infos = [...runs.values()].map((run) => run.info);
  const columns = Object.keys(COLUMNS).filter((name) => name === "step" || infos.some((info) => isSaid(info, name)));
  const shape = JSON.stringify([columns, infos.map((info) => [info.id, info.name])]);
  if (table.dataset.shape !== shape) {
    table.dataset.shape = shape;
    const titles = ["Run", "State", ...columns.map((name) => COLUMNS[name][0])];
    const cells = titles.map((title, i) => element("th", { scope: "col", textContent: title, className: i === 1 ? "state" : "" }));
    head.replaceChildren(element("tr", {}, ...cells));
    body.replaceChildren(...[...runs.values()].map((run) => rowOf(run, columns.length, toggled)));
  }
  [...runs.values()].forEach(({ info }, i) => {
    const cells = body.rows[i].cells;
    put(cells[1], stateOf(info));
    columns.forEach((name, j) => put(cells[j + 2], numberOf(info, name)));
  });
}

function rowOf(run, columns, toggled) {
  const box = element("input", { type: "checkbox", checked: run.shown });
  box.addEventListener("change", () => {
    run.shown = box.checked;
    toggled();
  });
  const name = element("span", { className: "name", textContent: run.info.name, title: run.info.path });
  const cells = Array.from({ length: columns + 1 }, (_, i) => element("td", { className: i ? "" : "state" }));
  const head = element("th", { scope: "row" }, element("label", {}, box, run.swatch(), name));
  return element("tr", {}, head, ...cells);
}

// The newest step; undefined if there is none.
export function newestStep({ last }) {
  return last.step ?? last.val_step;
}

// Whether the log has values in this column. The server sends null for a loss that is NaN or infinite.
export function isSaid({ last }, name) {
  return last[name] != null || (LOSSES.includes(name) && last[name] === null);
}

export function numberOf(info, name) {
  const value = name === "step" ? newestStep(info) : info.last[name];
  if (value == null) return isSaid(info, name) ? "not finite" : "–";
  return COLUMNS[name][1](value);
}

function put(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

let samplesShown = MORE_SAMPLES;

export function showSamples(runs) {
  const found = entriesOf(runs, (entry) => entry.kind === "sample");
  document.getElementById("samples").hidden = !found.length;
  const older = document.getElementById("older");
  older.hidden = found.length <= samplesShown;
  older.onclick = () => {
    samplesShown += MORE_SAMPLES;
    showSamples(runs);
    if (older.hidden) document.getElementById("written").focus();
  };
  const texts = document.getElementById("texts"), shown = found.slice(0, samplesShown);
  const key = JSON.stringify(shown.map(({ run, entry }) => [run.id, run.info.name, entry]));
  if (texts.dataset.shown === key) return; // a reader may have selected some of it
  texts.dataset.shown = key;
  const articles = shown.map(({ run, entry }) => {
    const title = element("h3", {}, run.swatch(), `${run.info.name}, step ${entry.step.toLocaleString("en")}`);
    return element("article", {}, title, element("blockquote", { textContent: entry.text }));
  });
  texts.replaceChildren(...articles);
}

// Other notes in the logs, such as skipped steps, and what happened to the files; the newest first.
export function showNotes(runs) {
  const events = runs.filter((run) => run.info.event).map((run) => `${run.info.name}: ${run.info.event}`);
  const notes = entriesOf(runs, (entry) => entry.kind !== "sample")
    .map(({ run, entry }) => `${run.info.name}, step ${entry.step.toLocaleString("en")}: ${entry.kind}: ${entry.text}`);
  const all = [...events, ...notes].slice(0, NOTES), section = document.getElementById("notes");
  section.hidden = !all.length;
  section.querySelector("ul").replaceChildren(...all.map((text) => element("li", { textContent: text })));
}

// The wanted entries: those of the newest step of each run, then those of the step before, and so on.
function entriesOf(runs, wanted) {
  const found = [...runs].sort((a, b) => a.info.age - b.info.age).flatMap((run) => {
    const entries = run.entries.filter(wanted);
    const steps = [...new Set(entries.map((entry) => entry.step))].sort((a, b) => b - a);
    return entries.reverse().map((entry) => ({ run, entry, rank: steps.indexOf(entry.step) }));
  });
  return found.sort((a, b) => a.rank - b.rank);
}
