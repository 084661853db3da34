// What a job's workers print, as they print it. The newest thousand lines are kept.

import { ask, lines, path } from "./api.js";
import { el, put } from "./dom.js";
import { number } from "./format.js";

const MOST_LINES = 1000;

export class Logs {
  constructor(job) {
    this.job = job;
    this.rows = [];
    this.fresh = [];
    this.worker = el("select", { "aria-label": "Worker", onchange: () => this.redraw() }, el("option", { value: "" }, "all workers"));
    this.follow = el("input", { type: "checkbox", checked: true });
    this.again = el("button", { type: "button", hidden: true, onclick: () => this.read() }, "Read again");
    this.told = el("span", { class: "muted" });
    this.list = el("ol");
    this.view = el("div", { class: "lines", tabindex: "0", role: "group", "aria-label": "Lines of the workers" }, this.list);
    this.node = el("div", {}, el("p", { class: "tools" }, this.worker, el("label", {}, this.follow, " follow"), this.again, this.told), this.view);
  }

  close() {
    this.reading?.abort();
  }

  /** Another job has the name: its lines are others. */
  clear() {
    this.close();
    this.worker.replaceChildren(el("option", { value: "" }, "all workers"));
    this.rows = [];
    this.fresh = [];
    this.redraw();
  }

  async read() {
    this.close();
    this.reading = new AbortController();
    const { signal } = this.reading;
    this.rows = [];
    this.redraw();
    this.again.hidden = true;
    let why = "The job's workers have ended.";
    try {
      const response = await ask(`jobs/${path(this.job)}/logs?follow=1`, { signal });
      for await (const line of lines(response)) if (line) this.add(JSON.parse(line));
    } catch (error) {
      if (signal.aborted) return;
      why = `The lines end here: ${error.message}`;
    }
    if (signal.aborted) return;
    put(this.told, why);
    this.again.hidden = false;
  }

  add(row) {
    this.fresh.push(row);
    if (this.fresh.length === 1) requestAnimationFrame(() => this.show());
  }

  show() {
    const fresh = this.fresh.splice(0).slice(-MOST_LINES);
    this.rows = [...this.rows, ...fresh].slice(-MOST_LINES);
    for (const row of fresh) this.offer(row.worker);
    this.list.append(...fresh.filter((row) => this.chosen(row)).map(lineOf));
    while (this.list.childElementCount > MOST_LINES) this.list.firstChild.remove();
    put(this.told, `${number(this.rows.length)} lines`);
    if (this.follow.checked) this.view.scrollTop = this.view.scrollHeight;
  }

  redraw() {
    this.list.replaceChildren(...this.rows.filter((row) => this.chosen(row)).map(lineOf));
  }

  chosen(row) {
    return !this.worker.value || this.worker.value === row.worker;
  }

  offer(worker) {
    if (!worker || [...this.worker.options].some((option) => option.value === worker)) return;
    this.worker.append(el("option", { value: worker }, worker));
  }
}

const lineOf = (row) =>
  el("li", { "data-stream": row.stream }, el("span", { class: "from" }, row.worker || row.node), el("span", {}, row.text));
