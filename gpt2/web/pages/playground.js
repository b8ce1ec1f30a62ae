// The page: what was typed, which token is chosen, and the panels that show it.

import { AttentionPanel } from "./attention.js";
import { drawHistory, drawLens, drawNext, drawNorms, drawTokens, make } from "./panels.js";
import { Session, Trace } from "./session.js";
import { Tokenizer } from "./tokenizer.js";
import { Writer } from "./writer.js";

const TYPING = 150; // ms without a key before a text is read
const LONGEST = 20_000; // characters that are read; more would keep the page busy
const MEBI = 2 ** 20;
const at = (id) => document.getElementById(id);

/** A model, with all that the page knows of it: description, tokenizer, the ids of the text, and the last answers. */
class Reader {
  constructor(folder, number, changed) {
    Object.assign(this, { number, changed, id: 0, ids: [], trace: null, said: null });
    this.session = new Session(folder, {
      progress: (message) => showProgress(message),
      failed: ({ message }) => showStatus(`The model can't be used: ${message}.`),
      ready: ({ description }) => this.ready(description),
      trace: (message) => this.traced(message),
      look: (message) => this.looked(message),
      token: (message) => this.wrote(message),
      finished: (message) => this.finished(message),
    });
  }

  ready(description) {
    this.description = description;
    this.tokenizer = new Tokenizer(description.tokens);
    this.changed("ready", this);
  }

  /** Put the places of its predictions and of its text on the page. */
  build() {
    const { description } = this;
    this.title = make("h3", { id: `model-${this.number}` }, description.name);
    this.next = make("div", { role: "group", "aria-labelledby": this.title.id });
    at("next").append(make("div", {}, this.title, this.next));
    this.writer = new Writer(this, at("written"), writing);
  }

  /** Read a text: the last tokens of it that fit. → the number of all its tokens. */
  read(text) {
    const ids = this.tokenizer.encode(text), { block_size } = this.description.config;
    this.ids = ids.length ? ids.slice(-block_size) : [this.tokenizer.endOfText];
    this.trace = this.said = null;
    this.session.send("inspect", { tokens: this.ids, id: ++this.id });
    return ids.length;
  }

  traced({ id, ...message }) {
    if (id !== this.id) return;
    this.trace = new Trace(message, this.description.config);
    this.changed("trace", this);
  }

  wrote(message) {
    showStatus("");
    this.writer.token(message);
  }

  finished(message) {
    showStatus("");
    this.writer.finished(message);
  }

  /** Ask what the model says after a position. */
  look(position) {
    if (this.trace) this.session.send("look", { position, id: this.id });
  }

  looked({ id, ...message }) {
    if (id !== this.id) return;
    this.said = message;
    this.changed("look", this);
  }
}

const changes = { ready, trace, look };
const panels = ["attention-panel", "norm-panel", "lens-panel", "next-panel"].map(at);
const attention = new AttentionPanel(
  { heads: at("heads"), title: at("head-title"), map: at("map"), row: at("row"), rows: at("rows"), query: at("query"), weights: at("weights") },
  choose,
);
let readers = []; // the model of the page, and one to compare with it
let position = 0; // the chosen token
let waiting = null; // the timer while somebody types

start();

async function start() {
  const { models, lessons } = await (await fetch("playground.json")).json();
  for (const link of document.querySelectorAll(".lesson")) {
    if (lessons) link.href = `${lessons}${link.dataset.lesson}.html`;
    else link.textContent = `notebooks/${link.dataset.lesson}.ipynb`;
  }
  if (lessons) {
    at("home").href = `${lessons}index.html`;
    at("home").hidden = false;
  }
  readers = models.map((folder, number) => new Reader(folder, number, (kind, reader) => changes[kind](reader)));
}

/** A model was loaded; when all are, the page begins. */
function ready() {
  if (!readers.every((reader) => reader.description)) return;
  const sentences = readers.map(({ description: { name, parameters, bytes, config } }) => {
    const size = `${(parameters / 1e6).toFixed(1)} M parameters in ${(bytes / MEBI).toFixed(1)} MiB`;
    return `${name}: ${size}, ${config.n_layer} layers of ${config.n_head} heads, ${config.n_embd} channels, context ${config.block_size}.`;
  });
  at("models").textContent = `${sentences.join(" ")} It runs in this browser; what you type stays on this machine.`;
  for (const reader of readers) reader.build(); // in their order, whichever was loaded first
  attention.build(readers[0].description.config);
  followAddress();
  for (const column of document.querySelectorAll(".columns h3")) column.hidden = readers.length === 1;
  for (const id of ["write", "step"]) at(id).ariaDisabled = false;
  readText();
}

/** A link can name a text and a head: playground.html#text=Once upon a time&layer=0&head=3 */
function followAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("text")) at("text").value = asked.get("text");
  attention.select({ layer: Number(asked.get("layer")), head: Number(asked.get("head")) });
}

addEventListener("hashchange", () => {
  followAddress();
  textChanged();
});

/** What was typed, or the end of it. */
const typed = () => at("text").value.slice(-LONGEST);

/** Read what was typed, and say what is left out. */
function readText() {
  for (const panel of panels) panel.setAttribute("aria-busy", true);
  const [first] = readers;
  const counts = readers.map((reader) => reader.read(typed()));
  drawTokens(at("tokens"), first.ids, first.tokenizer);
  choose(first.ids.length - 1, false);
  const cut = readers.map(({ description: { name, config: { block_size } } }, i) => {
    const all = counts[i].toLocaleString("en"), who = readers.length > 1 ? name : "The model";
    return counts[i] > block_size ? `${who} can read ${block_size} tokens, so it reads the last ones of ${all} tokens.` : "";
  });
  const { length } = at("text").value;
  if (length > LONGEST) cut.unshift(`The page reads the last ${LONGEST.toLocaleString("en")} of ${length.toLocaleString("en")} characters.`);
  const empty = "There is no text, so the model starts as at the beginning of a document.";
  at("text-note").textContent = counts[0] ? cut.join(" ").trim() : empty;
}

/** A text was read by a model. */
function trace(reader) {
  if (reader === readers[0]) {
    showStatus("");
    attention.draw(reader.trace, reader.ids.map((id) => reader.tokenizer.shown(id)));
    follow();
  }
  if (readers.every((each) => each.trace)) for (const panel of panels) panel.removeAttribute("aria-busy");
  reader.look(positionOf(reader));
}

/** The position at which a model is asked. One with another vocabulary has other tokens, so it is asked at its end. */
function positionOf(reader) {
  const [first] = readers, same = reader.tokenizer.endOfText === first.tokenizer.endOfText;
  return Math.max(0, reader.ids.length - (same ? first.ids.length - position : 1));
}

/** A model has said what follows. */
function look(reader) {
  if (reader === readers[0]) drawLens(at("lens"), reader.said.lens, reader.tokenizer);
  drawNext(reader.next, reader.said.logits, rule(), reader.tokenizer);
  reader.next.dataset.position = reader.said.position;
  const token = reader.tokenizer.shown(reader.ids[reader.said.position]);
  reader.title.textContent = `${reader.description.name}, after ${token}`;
}

/** Choose a token: all panels follow. A screen reader says what it is made of, unless it was not `asked` for. */
function choose(chosen, asked = true) {
  if (!at("tokens").children[chosen]) return; // of a text that is no longer there, or not there yet
  position = chosen;
  const [first] = readers;
  for (const option of at("tokens").children) {
    const selected = Number(option.dataset.position) === position;
    option.setAttribute("aria-selected", selected);
    option.tabIndex = selected ? 0 : -1;
  }
  bringIntoView(at("tokens"), at("tokens").children[position]);
  at("history").ariaLive = asked ? "polite" : "off";
  drawHistory(at("history"), first.ids[position], first.tokenizer);
  for (const label of document.querySelectorAll("p .chosen:not(#query *)")) {
    label.textContent = first.tokenizer.shown(first.ids[position]);
  }
  if (first.trace) follow();
  for (const reader of readers) reader.look(positionOf(reader));
}

/** Scroll a list, and not the page, to one of its items. */
function bringIntoView(list, { offsetTop, offsetHeight }) {
  const inside = offsetTop >= list.scrollTop && offsetTop + offsetHeight <= list.scrollTop + list.clientHeight;
  if (!inside) list.scrollTop = offsetTop - list.clientHeight / 2;
}

function follow() {
  attention.follow(position);
  drawNorms(at("norm"), readers[0].trace, position);
}

/** The rule that the sliders stand for. */
function rule() {
  const [temperature, topK, topP] = ["temperature", "top-k", "top-p"].map((id) => Number(at(id).value));
  const all = topK === Number(at("top-k").max);
  const shown = {
    "temperature": temperature ? temperature.toFixed(2) : "0: the likeliest",
    "top-k": all ? "off" : `${topK}`,
    "top-p": topP < 1 ? topP.toFixed(2) : "off",
  };
  for (const [id, text] of Object.entries(shown)) at(`${id}-value`).textContent = at(id).ariaValueText = text;
  return { temperature, topK: all ? null : topK, topP: topP < 1 ? topP : null };
}

function showProgress({ work, done, total }) {
  Object.assign(at("progress"), { max: total, value: done });
  at("progress").classList.remove("done");
  const unit = work === "loading" ? [MEBI, "MiB of weights"] : [1, "tokens"];
  const [a, b] = [done, total].map((value) => (value / unit[0]).toFixed(work === "loading" ? 1 : 0));
  at("status").textContent = `${work === "loading" ? "Loading" : "Reading"}: ${a} of ${b} ${unit[1]}`;
}

function showStatus(text) {
  at("progress").classList.add("done");
  at("status").textContent = text;
}

/** Buttons while a model writes, and when none does. They stay in the order of the Tab key, so that no focus is lost. */
function writing() {
  const busy = readers.some((reader) => reader.writer?.busy);
  const made = readers[0]?.writer?.ids.length > 0;
  for (const [id, off] of [["write", busy], ["step", busy], ["stop", !busy], ["take", busy || !made]]) at(id).ariaDisabled = off;
}

const isOn = (id) => at(id).ariaDisabled !== "true";

/** Continue the text, or what was written, by some tokens. */
function write(count, afresh) {
  if (waiting) textChanged(); // not only when the typing has paused
  if (!isOn("write")) return;
  const seed = numberOf("seed");
  for (const reader of readers) reader.writer.start({ count, seed, afresh, rule: rule(), text: typed() });
}

function stop() {
  for (const reader of readers) reader.writer?.stop();
}

/** The number of a field, within its limits, which the field shows from then on. */
function numberOf(id) {
  const { value, min, max } = at(id), number = Math.floor(Number(value)) || 0;
  return Number((at(id).value = Math.min(Number(max), Math.max(Number(min), number))));
}

/** Read a new text; what was written belonged to the old one. */
function textChanged() {
  clearTimeout(waiting);
  waiting = null;
  if (!readers.length || !readers.every((reader) => reader.description)) return;
  stop();
  for (const reader of readers) reader.writer.clear();
  readText();
}

at("text").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(textChanged, TYPING);
});
at("tokens").addEventListener("click", (event) => {
  const option = event.target.closest("[data-position]");
  if (option) choose(Number(option.dataset.position));
});
at("tokens").addEventListener("focusin", (event) => {
  const option = event.target.closest("[data-position]");
  if (option && Number(option.dataset.position) !== position) choose(Number(option.dataset.position));
});
at("tokens").addEventListener("keydown", (event) => {
  const last = at("tokens").children.length - 1;
  const next = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  at("tokens").children[Math.min(last, Math.max(0, next))].focus();
});
for (const id of ["temperature", "top-k", "top-p"]) {
  at(id).addEventListener("input", () => {
    const current = rule();
    for (const reader of readers) if (reader.said) drawNext(reader.next, reader.said.logits, current, reader.tokenizer);
  });
}
at("write").addEventListener("click", () => write(numberOf("count"), true));
at("step").addEventListener("click", () => write(1, false));
at("stop").addEventListener("click", stop);
at("take").addEventListener("click", () => {
  if (!isOn("take")) return;
  at("text").value += readers[0].writer.text;
  at("text").dispatchEvent(new Event("input"));
  at("text").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    at("write").click();
    at("written").scrollIntoView({ block: "nearest" });
  }
  if (event.key === "Escape") stop();
});
rule();
