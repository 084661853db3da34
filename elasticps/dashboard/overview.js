// The cluster at a glance: is all well, the jobs, what happened, the blocks, the nodes.

import { Curves } from "./curves.js";
import { el, keyed, put, set } from "./dom.js";
import { bytes, number } from "./format.js";
import { jobsTable, running } from "./jobs.js";
import { BlockMap } from "./map.js";
import { nodesTable } from "./nodes.js";
import { card, Changes, Facts, placesOf, repeat } from "./parts.js";
import { toNode } from "./route.js";
import { Series } from "./series.js";
import { eventsOf, final, jobNamed, state } from "./store.js";
import { EventList } from "./timeline.js";
import { Verdict } from "./verdict.js";

const CURVES_MS = 2000;
const MAP_MS = 1000;
const MOST_CURVES = 12;

export class Overview {
  constructor() {
    this.series = new Map();
    this.verdict = new Verdict();
    this.figures = new Facts();
    this.jobs = jobsTable((name) => this.series.get(name));
    this.old = el("p", { hidden: true });
    this.job = el("select", { "aria-label": "Job", onchange: () => this.chosen() });
    this.curves = new Curves({ full: false, lead: this.job });
    this.events = new EventList();
    this.map = new BlockMap();
    this.nodes = nodesTable();
    this.node = el("div", { class: "page" },
      el("h1", { class: "sr", tabindex: "-1" }, "Overview"),
      this.verdict.node,
      this.figures.node,
      card("Jobs", this.jobs.node, this.old),
      el("div", { class: "columns" },
        card("Curves", this.curves.node),
        card("Timeline", this.events.node)),
      card("Blocks", this.map.node),
      card("Nodes", this.nodes.node));
    this.places = new Changes(() => this.map.refresh(this.mapped), MAP_MS);
    this.stop = repeat(() => this.refresh(), CURVES_MS);
  }

  close() {
    this.stop();
    this.places.close();
    this.curves.close();
    this.map.close();
  }

  update({ status, events }) {
    this.verdict.update(state);
    if (!status) return;
    const jobs = [...status.jobs].sort((one, other) => final(one) - final(other) || other.submitted_unix - one.submitted_unix);
    this.figures.update(figures(status));
    this.jobs.update(jobs);
    const left = status.ended_left_out ?? 0;
    put(this.old, left ? `${number(left)} that ended before are not shown: elasticps jobs lists them.` : "");
    set(this.old, "hidden", !left);
    this.offer(jobs);
    this.events.update(events);
    this.nodes.update(status.nodes);
    this.drawCurves();
    if (!this.begun) this.refresh().catch(() => {}); // as soon as the jobs are known; what fails is tried again
    this.begun = true;
    this.places.see(placesOf(status) + this.mapped);
  }

  /** The jobs to choose from; the newest that runs is chosen at first. */
  offer(jobs) {
    const before = this.job.value;
    keyed(this.job, jobs.slice(0, 100), (job) => job.job, (job) => el("option", { value: job.job }, job.job), () => {});
    if (before && jobNamed(before)) this.job.value = before; // one that is forgotten is not offered
    set(this.job, "hidden", jobs.length < 2);
  }

  chosen() {
    this.drawCurves();
    if (state.status) this.places.see(placesOf(state.status) + this.mapped);
    this.refresh();
  }

  /** The job whose blocks are shown: the chosen one while it has any; null: all jobs'. */
  get mapped() {
    const chosen = jobNamed(this.job.value);
    return chosen && !final(chosen) ? chosen.job : null;
  }

  async refresh() {
    if (!state.status) return;
    const wanted = state.status.jobs.filter((job) => !final(job)).slice(0, MOST_CURVES).map((job) => job.job);
    if (this.job.value) wanted.push(this.job.value);
    for (const name of this.series.keys()) if (!jobNamed(name)) this.series.delete(name);
    for (const name of new Set(wanted)) {
      const { key } = jobNamed(name) ?? {};
      const known = this.series.get(name);
      if (!known || known.key !== key) this.series.set(name, new Series(name, key));
    }
    await Promise.all([...new Set(wanted)].map((name) => this.series.get(name).refresh()));
    this.jobs.show();
    this.drawCurves();
  }

  drawCurves() {
    const job = jobNamed(this.job.value);
    const series = this.series.get(this.job.value);
    const events = eventsOf(state.events, this.job.value, job);
    this.curves.update({ points: series?.points ?? [], metrics: series?.metrics ?? [], events, goesOn: Boolean(job && !final(job)) });
  }
}

function figures({ nodes, jobs, leader }) {
  const ready = nodes.filter((node) => node.state === "ready" && node.reachable).length;
  const active = jobs.filter((job) => !final(job));
  const sum = (rows, of) => rows.reduce((all, row) => all + of(row), 0);
  const moving = sum(active, (job) => job.pending_moves);
  return [
    ["Nodes ready", `${number(ready)} of ${number(nodes.length)}`],
    ["Leader", leader ? el("a", { href: toNode(leader) }, leader) : "none"],
    ["Jobs", number(active.length)],
    ["Workers", number(sum(active, (job) => running(job).length))],
    ["Blocks", number(sum(active, (job) => job.blocks))],
    ["Held", bytes(sum(nodes, (node) => node.bytes_held))],
    ["Moving", number(moving)],
    ["Short of copies", number(sum(active, (job) => job.under_replicated))],
  ];
}
