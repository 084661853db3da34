// A job's curves below each other, with the timeline on the same axis and one cursor through all.

import { Chart, LEFT, RIGHT } from "./chart.js";
import { el, put } from "./dom.js";
import { byteRate, clock, number, rate } from "./format.js";
import { hairlines, Lanes } from "./timeline.js";

const WINDOWS = [["all", Infinity], ["1 h", 3600], ["15 min", 900], ["5 min", 300]];
const NARROWEST = 280;
const SHORTEST_S = 10;

export class Curves {
  /** `full`: traffic, workers and staleness too. `lead` is put before the choices. */
  constructor({ full = true, lead = null } = {}) {
    this.input = { points: [], events: [], metrics: [], goesOn: false };
    this.hover = null;
    this.metric = el("select", { "aria-label": "Metric", onchange: () => this.draw() });
    this.log = el("input", { type: "checkbox", onchange: () => this.draw() });
    this.window = el("select", { "aria-label": "Time shown", onchange: () => this.draw() },
      ...WINDOWS.map(([title]) => el("option", { value: title }, title)));
    this.lanes = new Lanes();
    this.main = new Chart({ title: "Metric", pick: (point) => point.metrics?.[this.metric.value] });
    this.others = [
      new Chart({ title: "Rounds a second", pick: (point) => point.rounds_per_s, show: rate, fromZero: true }),
      ...(full
        ? [
            new Chart({ title: "Pushed", pick: (point) => point.pushed_bytes_per_s, show: byteRate, base: 1024, whole: true }),
            new Chart({ title: "Workers", pick: (point) => point.workers, whole: true }),
            new Chart({ title: "Staleness, rounds", pick: (point) => point.staleness, whole: true }),
          ]
        : []),
    ];
    this.when = el("span", { class: "muted when" });
    this.stack = el("div", { class: "curves" }, this.lanes.node, this.main.node, ...this.others.map((chart) => chart.node));
    this.node = el("div", {},
      el("p", { class: "tools" }, lead, this.metric, el("label", {}, this.log, " log scale"), this.window, this.when), this.stack);
    this.stack.addEventListener("pointermove", (event) => this.point(event));
    this.stack.addEventListener("pointerleave", () => this.point(null));
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.stack);
  }

  close() {
    this.sized.disconnect();
  }

  /** `goesOn`: the axis reaches to what has just happened, even while no point has come since. */
  update({ points, events, metrics, goesOn }) {
    this.input = { points, events, metrics, goesOn };
    const wanted = metrics.length ? metrics : ["loss"];
    const old = [...this.metric.options].map((option) => option.value);
    if (wanted.join() !== old.join()) {
      const chosen = wanted.includes(this.metric.value) ? this.metric.value : wanted.includes("loss") ? "loss" : wanted[0];
      this.metric.replaceChildren(...wanted.map((name) => el("option", { value: name }, name)));
      this.metric.value = chosen;
    }
    this.draw();
  }

  point(event) {
    const x = event ? event.clientX - this.main.svg.getBoundingClientRect().left : null;
    const inside = x !== null && x >= LEFT && x <= this.width - RIGHT;
    const [from, to] = this.span;
    this.hover = inside ? from + ((x - LEFT) / (this.width - RIGHT - LEFT)) * (to - from) : null;
    this.draw();
  }

  get width() {
    return Math.max(NARROWEST, this.main.node.clientWidth);
  }

  /** From the first point (or the window's start) to the newest thing that is known. */
  get span() {
    const { points, events, goesOn } = this.input;
    const told = Math.max(points.at(-1)?.unix_s ?? 0, (goesOn && events.at(-1)?.unix_s) || 0);
    const last = told || Date.now() / 1000;
    const first = points[0]?.unix_s ?? last - SHORTEST_S;
    const longest = Object.fromEntries(WINDOWS)[this.window.value];
    return [Math.min(last - SHORTEST_S, Math.max(first, last - longest)), last];
  }

  draw() {
    if (!this.node.isConnected) return;
    const { points, events } = this.input;
    const { span, width, hover } = this;
    const marks = hairlines(events, span);
    put(this.main.title, this.metric.value);
    put(this.when, hover === null ? "" : clock(hover));
    this.lanes.update({ events, span, width });
    this.main.update({ points, span, width, marks, hover, log: this.log.checked });
    for (const chart of this.others) chart.update({ points, span, width, marks, hover });
  }
}

export const newest = (points) => points.at(-1) ?? {};
export const lossOf = (metrics) => {
  const [name, value] = Object.entries(metrics ?? {}).find(([key]) => key === "loss") ?? Object.entries(metrics ?? {})[0] ?? [];
  return name ? `${name} ${number(value)}` : "";
};
