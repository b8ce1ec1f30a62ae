// The text that a model writes, with its speed and the size of its key-value cache.

import { make } from "./panels.js";

export class Writer {
  /** Put the place of the text into `column`. `changed()` is called when it starts and when it ends. */
  constructor(reader, column, changed) {
    Object.assign(this, { reader, changed, id: 0 });
    this.prompt = make("span", { class: "prompt" });
    this.made = make("span", { class: "made" });
    const { name } = reader.description;
    this.box = make("div", { class: "written", role: "region", tabindex: 0, "aria-label": `text by ${name}` }, this.prompt, this.made);
    this.figures = make("p", { class: "figures quiet" }, "Key-value cache: empty");
    this.spoken = make("p", { class: "visually-hidden", role: "status" }); // once per text, and not every token
    column.append(make("div", {}, make("h3", {}, name), this.box, this.figures, this.spoken));
    this.clear();
  }

  get text() {
    return this.made.textContent;
  }

  /** Forget what was written. Later messages about it are ignored. */
  clear() {
    this.id++;
    this.busy = false;
    this.ids = [];
    this.restarted = false;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.made.replaceChildren();
    this.prompt.textContent = "";
    this.figures.textContent = "Key-value cache: empty";
    this.changed();
  }

  /** Continue a text; unless `afresh`, behind what was written last. */
  start({ text, count, seed, afresh, rule }) {
    if (afresh) this.clear();
    const { tokenizer, description, session } = this.reader;
    const prompt = tokenizer.encode(text), read = prompt.length ? prompt : [tokenizer.endOfText];
    this.prompt.textContent = text;
    this.busy = true;
    this.before = this.text.length;
    const tokens = this.ids.length ? null : read.slice(-description.config.block_size);
    session.send("generate", { id: this.id, tokens, count, rule, seed: seed + this.ids.length });
    this.changed();
  }

  /** Ask the model to stop; `finished` says when it has. */
  stop() {
    if (this.busy) this.reader.session.send("stop");
  }

  token({ id, token, made, seconds, bytes, restarted }) {
    if (id !== this.id) return;
    const { tokenizer } = this.reader;
    if (token === tokenizer.endOfText) return;
    this.ids.push(token);
    this.made.append(this.decoder.decode(tokenizer.bytes(token), { stream: true }));
    this.box.scrollTop = this.box.scrollHeight;
    this.restarted ||= restarted;
    const speed = made > 1 ? `${((made - 1) / seconds).toFixed(0)} tokens/s · ` : "";
    const restart = this.restarted ? " · The context was full, so its later half started a new one." : "";
    this.figures.textContent = `${speed}${this.ids.length} ${this.ids.length === 1 ? "token" : "tokens"} · key-value cache: ${bytes.toLocaleString("en")} bytes${restart}`;
  }

  finished({ id, reason }) {
    if (id !== this.id) return;
    this.busy = false;
    if (reason === "end of text") this.figures.textContent += " · The model has ended its text.";
    this.spoken.textContent = `${this.reader.description.name} wrote: ${this.text.slice(this.before)}`;
    this.changed();
  }
}
