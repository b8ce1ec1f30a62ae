// The page: what was typed, which token is chosen, and the panels that show it.

import { AttentionPanel } from "./attention.js";
import { drawHistory, drawLens, drawNext, drawNorms, drawTokens, make } from "./panels.js";
import { Reader } from "./reader.js";

const TYPING = 150; // ms without a key before a text is read
const LONGEST = 20_000; // characters that are read; more would keep the page busy
const MEBI = 2 ** 20;
const byId = (id) => document.getElementById(id);

const on = { progress: showProgress, ready, failed, trace, prediction, writing, wrote: () => showStatus("") };
const panels = ["attention-panel", "norm-panel", "lens-panel", "next-panel"].map(byId);
const attention = new AttentionPanel(
  { heads: byId("heads"), title: byId("head-title"), map: byId("map"), row: byId("row"), rows: byId("rows"), query: byId("query"), weights: byId("weights") },
  choose,
);
let readers = []; // the model of the page, and one to compare with it
let position = 0; // the chosen token
let typingTimer = null; // the timer while somebody types

start();

async function start() {
  const { models, lessons } = await (await fetch("playground.json")).json();
  for (const link of document.querySelectorAll(".lesson")) {
    if (lessons) link.href = `${lessons}${link.dataset.lesson}.html`;
    else link.textContent = `notebooks/${link.dataset.lesson}.ipynb`;
  }
  if (lessons) {
    byId("home").href = `${lessons}index.html`;
    byId("home").hidden = false;
  }
  readers = models.map((folder, number) => new Reader(folder, number, on));
}

/** Called when a model was loaded. The page starts when all models are. */
function ready() {
  if (!readers.length || !readers.every((reader) => reader.description)) return;
  const sentences = readers.map(({ description: { name, parameters, bytes, config } }) => {
    const size = `${(parameters / 1e6).toFixed(1)} M parameters in ${(bytes / MEBI).toFixed(1)} MiB`;
    return `${name}: ${size}, ${config.n_layer} layers of ${config.n_head} heads, ${config.n_embd} channels, context ${config.block_size}.`;
  });
  byId("models").textContent = `${sentences.join(" ")} It runs in this browser; what you type stays on this machine.`;
  for (const reader of readers) reader.build(byId("next"), byId("written")); // in their order, whichever was loaded first
  attention.build(readers[0].description.config);
  applyHash();
  for (const column of document.querySelectorAll(".columns h3")) column.hidden = readers.length === 1;
  for (const id of ["write", "step"]) byId(id).ariaDisabled = false;
  readText();
}

/** A model could not be loaded, or has computed nonsense. The page goes on with the other one, if there is one. */
function failed(reader, problem) {
  const said = [...byId("problems").children].some((each) => each.textContent === problem);
  if (!said) byId("problems").append(make("p", { class: "note" }, problem));
  for (const panel of panels) panel.removeAttribute("aria-busy");
  showStatus("");
  if (reader.description) return;
  readers = readers.filter((each) => each !== reader);
  ready();
}

/** A link can name a text and a head: playground.html#text=Once upon a time&layer=0&head=3 */
function applyHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("text")) byId("text").value = asked.get("text");
  attention.select({ layer: Number(asked.get("layer")), head: Number(asked.get("head")) });
}

addEventListener("hashchange", () => {
  applyHash();
  textChanged();
});

/** What was typed, or the end of it. */
const typed = () => byId("text").value.slice(-LONGEST);

/** Read what was typed, and say what is left out. */
function readText() {
  for (const panel of panels) panel.setAttribute("aria-busy", true);
  const [first] = readers;
  const counts = readers.map((reader) => reader.read(typed()));
  drawTokens(byId("tokens"), first.ids, first.tokenizer);
  choose(first.ids.length - 1, false);
  const cut = readers.map(({ description: { name, config: { block_size } } }, i) => {
    const all = counts[i].toLocaleString("en"), who = readers.length > 1 ? name : "The model";
    return counts[i] > block_size ? `${who} can read ${block_size} tokens, so it reads the last ones of ${all} tokens.` : "";
  });
  const { length } = byId("text").value;
  if (length > LONGEST) cut.unshift(`The page reads the last ${LONGEST.toLocaleString("en")} of ${length.toLocaleString("en")} characters.`);
  const empty = "There is no text, so the model starts as at the beginning of a document.";
  byId("text-note").textContent = counts[0] ? cut.join(" ").trim() : empty;
}

/** A text was read by a model. */
function trace(reader) {
  if (reader === readers[0]) {
    attention.draw(reader.trace, reader.ids.map((id) => reader.tokenizer.shown(id)));
    follow();
  }
  if (readers.every((each) => each.trace)) {
    showStatus("");
    for (const panel of panels) panel.removeAttribute("aria-busy");
  }
  reader.predict(positionOf(reader));
}

/** The position at which a model is asked. One with another vocabulary has other tokens, so it is asked at its end. */
function positionOf(reader) {
  const [first] = readers, same = reader.tokenizer.endOfText === first.tokenizer.endOfText;
  return Math.max(0, reader.ids.length - (same ? first.ids.length - position : 1));
}

/** A model has predicted the next token. */
function prediction(reader) {
  const { lens, logits, position } = reader.prediction;
  if (reader === readers[0]) drawLens(byId("lens"), lens, reader.tokenizer);
  drawNext(reader.next, logits, rule(), reader.tokenizer);
  reader.next.dataset.position = position;
  const token = reader.tokenizer.shown(reader.ids[position]);
  reader.title.textContent = `${reader.description.name}, after ${token}`;
}

/** Choose a token: all panels follow. A screen reader says what it is made of, unless it was not `asked` for. */
function choose(chosen, asked = true) {
  if (!byId("tokens").children[chosen]) return; // of a text that is no longer there, or not there yet
  position = chosen;
  const [first] = readers;
  for (const option of byId("tokens").children) {
    const selected = Number(option.dataset.position) === position;
    option.setAttribute("aria-selected", selected);
    option.tabIndex = selected ? 0 : -1;
  }
  bringIntoView(byId("tokens"), byId("tokens").children[position]);
  byId("history").ariaLive = asked ? "polite" : "off";
  drawHistory(byId("history"), first.ids[position], first.tokenizer);
  for (const label of document.querySelectorAll("p .chosen:not(#query *)")) {
    label.textContent = first.tokenizer.shown(first.ids[position]);
  }
  if (first.trace) follow();
  for (const reader of readers) reader.predict(positionOf(reader));
}

/** Scroll a list, and not the page, to one of its items. */
function bringIntoView(list, { offsetTop, offsetHeight }) {
  const inside = offsetTop >= list.scrollTop && offsetTop + offsetHeight <= list.scrollTop + list.clientHeight;
  if (!inside) list.scrollTop = offsetTop - list.clientHeight / 2;
}

function follow() {
  attention.follow(position);
  drawNorms(byId("norm"), readers[0].trace, position);
}

/** The rule that the sliders stand for. */
function rule() {
  const [temperature, topK, topP] = ["temperature", "top-k", "top-p"].map((id) => Number(byId(id).value));
  const all = topK === Number(byId("top-k").max);
  const shown = {
    "temperature": temperature ? temperature.toFixed(2) : "0: the likeliest",
    "top-k": all ? "off" : `${topK}`,
    "top-p": topP < 1 ? topP.toFixed(2) : "off",
  };
  for (const [id, text] of Object.entries(shown)) byId(`${id}-value`).textContent = byId(id).ariaValueText = text;
  return { temperature, topK: all ? null : topK, topP: topP < 1 ? topP : null };
}

function showProgress({ work, done, total }) {
  Object.assign(byId("progress"), { max: total, value: done });
  byId("progress").classList.remove("done");
  const unit = work === "loading" ? [MEBI, "MiB of weights"] : [1, "tokens"];
  const [a, b] = [done, total].map((value) => (value / unit[0]).toFixed(work === "loading" ? 1 : 0));
  byId("status").textContent = `${work === "loading" ? "Loading" : "Reading"}: ${a} of ${b} ${unit[1]}`;
}

function showStatus(text) {
  byId("progress").classList.add("done");
  byId("status").textContent = text;
}

/** Buttons while a model writes, and when none does. They stay in the order of the Tab key, so that no focus is lost. */
function writing() {
  const busy = readers.some((reader) => reader.writer?.busy);
  const made = readers[0]?.writer?.ids.length > 0;
  for (const [id, off] of [["write", busy], ["step", busy], ["stop", !busy], ["take", busy || !made]]) byId(id).ariaDisabled = off;
}

const isOn = (id) => byId(id).ariaDisabled !== "true";

/** Continue the text, or what was written, by some tokens. */
function write(count, afresh) {
  if (typingTimer) textChanged(); // not only when the typing has paused
  if (!isOn("write")) return;
  const seed = numberOf("seed");
  for (const reader of readers) reader.writer.start({ count, seed, afresh, rule: rule(), text: typed() });
}

function stop() {
  for (const reader of readers) reader.writer?.stop();
}

/** The number of a field, within its limits, which the field shows from then on. */
function numberOf(id) {
  const { value, min, max } = byId(id), number = Math.floor(Number(value)) || 0;
  return Number((byId(id).value = Math.min(Number(max), Math.max(Number(min), number))));
}

/** Read a new text; what was written belonged to the old one. */
function textChanged() {
  clearTimeout(typingTimer);
  typingTimer = null;
  if (!readers.length || !readers.every((reader) => reader.description)) return;
  stop();
  for (const reader of readers) reader.writer.clear();
  readText();
}

byId("text").addEventListener("input", () => {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(textChanged, TYPING);
});
byId("tokens").addEventListener("click", (event) => {
  const option = event.target.closest("[data-position]");
  if (option) choose(Number(option.dataset.position));
});
byId("tokens").addEventListener("focusin", (event) => {
  const option = event.target.closest("[data-position]");
  if (option && Number(option.dataset.position) !== position) choose(Number(option.dataset.position));
});
byId("tokens").addEventListener("keydown", (event) => {
  const last = byId("tokens").children.length - 1;
  const next = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  byId("tokens").children[Math.min(last, Math.max(0, next))].focus();
});
for (const id of ["temperature", "top-k", "top-p"]) {
  byId(id).addEventListener("input", () => {
    const current = rule();
    for (const reader of readers) if (reader.prediction) drawNext(reader.next, reader.prediction.logits, current, reader.tokenizer);
  });
}
byId("write").addEventListener("click", () => write(numberOf("count"), true));
byId("step").addEventListener("click", () => write(1, false));
byId("stop").addEventListener("click", stop);
byId("take").addEventListener("click", () => {
  if (!isOn("take")) return;
  byId("text").value += readers[0].writer.text;
  byId("text").dispatchEvent(new Event("input"));
  byId("text").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    byId("write").click();
    byId("written").scrollIntoView({ block: "nearest" });
  }
  if (event.key === "Escape") stop();
});
rule();
