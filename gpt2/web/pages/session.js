// A model in a worker, as the page sees it.

export class Session {
  /** Start to load the model of a folder. `on` has a function per kind of message of `worker.js`. */
  constructor(folder, on) {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data: { kind, ...message } }) => on[kind]?.(message);
    // the thread did not start; what goes wrong later is a message
    this.worker.onerror = ({ message }) => {
      on.failed({ message: `it needs a browser of 2023 or newer (${message ?? "no thread"})` });
    };
    this.send("load", { folder: new URL(folder, document.baseURI).href });
  }

  send(kind, options = {}) {
    this.worker.postMessage({ kind, ...options });
  }
}

/** What was computed at every position of a text: attention weights, and norms of the residual stream. */
export class Trace {
  constructor(positions, { n_head }) {
    Object.assign(this, { positions, n_head, T: positions.length });
  }

  /** The weights (t + 1) with which the query at position t sees positions 0 … t. */
  weights(t, layer, head) {
    const first = (layer * this.n_head + head) * (t + 1);
    return this.positions[t].attention.subarray(first, first + t + 1);
  }

  /** The norm of the residual stream (n_layer + 1) of a position: before the first layer, and after each. */
  streamNorms(t) {
    return this.positions[t].norms;
  }
}
