// Pieces that every page is made of.

import { el, keyed, put } from "./dom.js";

export const card = (title, ...content) => {
  const id = `card-${title.toLowerCase().replace(/\W+/g, "-")}`;
  return el("section", { class: "card", "aria-labelledby": id }, el("h2", { id }, title), ...content);
};

/** Terms and their values, side by side. */
export class Facts {
  constructor() {
    this.node = el("dl", { class: "facts" });
  }

  /** `rows`: [term, text or element]; null is left out. */
  update(rows) {
    keyed(this.node, rows.filter(Boolean), ([term]) => term,
      ([term]) => el("div", {}, el("dt", {}, term), el("dd")),
      (node, [, value]) => put(node.lastChild, value));
  }
}

/** Calls `act` now and every `everyMs`, never twice at once; returns what ends it. What fails is tried again. */
export function repeat(act, everyMs) {
  let busy = false;
  const once = async () => {
    if (busy || document.hidden) return;
    busy = true;
    try {
      await act();
    } catch (error) {
      console.info(error.message); // the stream tells the reader that the daemon is away
    } finally {
      busy = false;
    }
  };
  const timer = setInterval(once, everyMs);
  once();
  return () => clearInterval(timer);
}

/** At most one call of `act` in `everyMs`, and one for the newest `key`. */
export class Changes {
  constructor(act, everyMs) {
    Object.assign(this, { act, everyMs, key: undefined, timer: null, last: -Infinity });
  }

  see(key) {
    if (key === this.key) return;
    this.key = key;
    if (this.timer) return;
    const wait = Math.max(0, this.everyMs - (performance.now() - this.last));
    this.timer = setTimeout(() => this.run(), wait);
  }

  async run() {
    this.timer = null;
    this.last = performance.now();
    const { key } = this;
    try {
      await this.act();
    } catch (error) {
      console.info(error.message);
      if (this.key === key) this.key = undefined; // the next word of the stream has it tried again
    }
  }

  close() {
    clearTimeout(this.timer);
  }
}

/** Changes when any block's place may have. */
export const placesOf = (status) =>
  JSON.stringify([
    status.nodes.map((node) => [node.node, node.leads, node.replicas]),
    status.jobs.map((job) => [job.job, job.state, job.blocks, job.pending_moves, job.movement, job.blocks_by_node]),
  ]);
