// A model of the page, with all that the page knows of it.

import { make } from "./panels.js";
import { Session, Trace } from "./session.js";
import { Tokenizer } from "./tokenizer.js";
import { Writer } from "./writer.js";

/** Description, tokenizer, the ids of the text, and the last answers of the model. */
export class Reader {
  /** `on` has a function per change: progress, ready, failed, trace, prediction, writing, wrote. */
  constructor(folder, number, on) {
    Object.assign(this, { number, on, id: 0, ids: [], positions: [], trace: null, prediction: null });
    this.session = new Session(folder, {
      progress: (message) => on.progress(message),
      failed: (message) => this.failed(message),
      ready: (message) => this.ready(message),
      trace: (message) => this.traced(message),
      prediction: (message) => this.predicted(message),
      token: (message) => this.tokenWritten(message),
      finished: (message) => this.finished(message),
    });
  }

  failed({ message }) {
    this.on.failed(this, `${this.description?.name ?? "The model"} can't be used: ${message}.`);
  }

  ready({ description }) {
    this.description = description;
    this.tokenizer = new Tokenizer(description.tokens);
    this.on.ready(this);
  }

  /** Put the places of its predictions and of its text on the page, into two elements. */
  build(next, written) {
    const { description } = this;
    this.title = make("h3", { id: `model-${this.number}` }, description.name);
    this.next = make("div", { role: "group", "aria-labelledby": this.title.id });
    next.append(make("div", {}, this.title, this.next));
    this.writer = new Writer(this, written, this.on.writing);
  }

  /** Read a text: the last tokens of it that fit. → the number of all its tokens. */
  read(text) {
    const ids = this.tokenizer.encode(text), { block_size } = this.description.config;
    this.ids = ids.length ? ids.slice(-block_size) : [this.tokenizer.endOfText];
    this.trace = this.prediction = null;
    this.session.send("inspect", { tokens: this.ids, id: ++this.id });
    return ids.length;
  }

  /** The worker has read a text, and sends what is new from a position on. An answer to an older text counts, too. */
  traced({ id, from, positions }) {
    this.positions.splice(from, Infinity, ...positions);
    if (id !== this.id) return;
    this.trace = new Trace([...this.positions], this.description.config);
    this.on.trace(this);
  }

  tokenWritten(message) {
    this.on.wrote();
    this.writer.token(message);
  }

  finished(message) {
    this.on.wrote();
    this.writer.finished(message);
  }

  /** Ask what the model says after a position. */
  predict(position) {
    if (this.trace) this.session.send("predict", { position, id: this.id });
  }

  predicted({ id, ...message }) {
    if (id !== this.id) return;
    this.prediction = message;
    this.on.prediction(this);
  }
}
