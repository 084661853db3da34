// One job: how it is, its curves under its timeline, its blocks, its workers, what they print.

import { cancel } from "./act.js";
import { get, path } from "./api.js";
import { Curves, newest } from "./curves.js";
import { el, put, set } from "./dom.js";
import { bytes, byteRate, day, duration, number, rate } from "./format.js";
import { lag, stragglers } from "./health.js";
import { running, speed, staleness } from "./jobs.js";
import { Logs } from "./logs.js";
import { BlockMap } from "./map.js";
import { card, Changes, Facts, placesOf, repeat } from "./parts.js";
import { toNode } from "./route.js";
import { Series } from "./series.js";
import { eventsOf, final, jobNamed, mayCancel, state } from "./store.js";
import { Table } from "./table.js";
import { EventList } from "./timeline.js";

const CURVES_MS = 1000;
const MAP_MS = 1000;

export class JobPage {
  constructor(name) {
    this.name = name;
    this.series = new Series(name);
    this.state = el("span", { class: "state" });
    this.cancel = el("button", { type: "button", hidden: true, onclick: () => cancel(name) }, "Cancel");
    this.reason = el("p", { class: "notice", hidden: true });
    this.trace = el("pre", { class: "trace", tabindex: "0", hidden: true, role: "group", "aria-label": "Traceback" });
    this.figures = new Facts();
    this.curves = new Curves();
    this.events = new EventList();
    this.map = new BlockMap();
    this.workers = workersTable();
    this.logs = new Logs(name);
    this.logsAreRead = false;
    this.node = el("div", { class: "page" },
      el("p", { class: "crumb" }, el("a", { href: "#/" }, "Overview"), " / jobs"),
      el("div", { class: "title" }, el("h1", { tabindex: "-1" }, name), this.state, el("span", { class: "spring" }), this.cancel),
      this.reason, this.trace, this.figures.node,
      el("div", { class: "columns" }, card("Curves", this.curves.node), el("div", { class: "tall" }, card("Timeline", this.events.node))),
      card("Blocks", this.map.node), card("Workers", this.workers.node), card("Output", this.logs.node));
    this.places = new Changes(() => this.map.refresh(name), MAP_MS);
    this.stop = repeat(() => this.refresh(), CURVES_MS);
  }

  close() {
    this.stop();
    this.places.close();
    this.curves.close();
    this.map.close();
    this.logs.close();
  }

  update({ status, events }) {
    if (!status) return;
    const job = jobNamed(this.name) ?? this.old;
    this.job = job;
    if (!job && status.ended_left_out && !this.sought) this.seek();
    if (job && job.key !== this.key) this.begin(job.key);
    this.about = eventsOf(events, this.name, job);
    this.events.update(this.about);
    this.cancel.hidden = !job || final(job) || !mayCancel(job);
    put(this.state, job ? job.state.toLowerCase() : "unknown");
    set(this.state, "data-state", job?.state);
    this.tell(job ? job.failure?.reason || job.reason : "There is no such job.", job?.failure?.traceback);
    set(this.reason, "data-severity", job?.state === "FAILED" ? "error" : null);
    if (!job) return;
    this.figures.update(figures(job, this.series.points));
    this.workers.of(job);
    this.drawCurves();
    this.places.see(placesOf(status));
    if (!this.logsAreRead) {
      this.logsAreRead = true;
      this.logs.read();
      this.refresh().catch(() => {}); // what fails is tried again in a second
    }
  }

  /** The job, or a later one of its name: what was drawn of the earlier one is none of its. */
  begin(key) {
    if (this.key !== undefined) this.logs.clear();
    this.key = key;
    this.series = new Series(this.name);
    this.logsAreRead = false;
  }

  /** A job that ended so long ago that the status leaves it out. */
  async seek() {
    this.sought = true;
    try {
      this.old = await get(`jobs/${path(this.name)}`);
      this.update(state);
    } catch (error) {
      this.sought = error.status === 404; // else it is tried again
    }
  }

  tell(reason, trace) {
    put(this.reason, reason);
    this.reason.hidden = !reason;
    put(this.trace, trace ?? "");
    this.trace.hidden = !trace;
  }

  async refresh() {
    if (this.job && (await this.series.refresh())) this.drawCurves();
  }

  drawCurves() {
    const { points, metrics } = this.series;
    this.curves.update({ points, metrics, events: this.about, goesOn: !final(this.job) });
  }
}

function figures(job, points) {
  const { verdict, checkpoint, movement } = job;
  const ended = job.ended_unix ?? newest(points).unix_s ?? Date.now() / 1000;
  const main = Object.entries(job.metrics ?? {}).slice(0, 4).map(([name, value]) => [name, value === null ? "not a number" : number(value)]);
  return [
    ["Round", number(job.round)],
    ...main,
    ["Speed", final(job) ? "–" : rate(speed(job, points))],
    ["Pushed", final(job) ? bytes(job.pushed_bytes) : `${byteRate(newest(points).pushed_bytes_per_s)}, ${bytes(job.pushed_bytes)} in all`],
    ["Workers", number(running(job).length)],
    ["Staleness", final(job) ? "–" : `${number(staleness(job, points))} rounds`],
    ["Stragglers", number(stragglers(job).length)],
    ["Blocks", `${number(job.blocks)}, ${job.replicas} copies each`],
    ["Short of copies", number(job.under_replicated)],
    ["Moved", `${number(movement.blocks ?? 0)} blocks, ${bytes(movement.snapshot_bytes ?? 0)}`],
    ["Checkpoint", checkpoint?.directory ? `round ${number(checkpoint.round)}` : "none"],
    verdict.acknowledged ? ["Audit", `${number(verdict.acknowledged)} pushes, ${number(verdict.lost)} lost, ${number(verdict.duplicated)} doubled`] : null,
    ["Strategy", job.strategy],
    ["Codec", job.codec],
    ["Consistency", job.consistency],
    ["Script", job.script.split("/").at(-1)],
    job.owner ? ["Owner", job.owner] : null,
    ["Submitted", day(job.submitted_unix)],
    ["Took", duration(ended - job.submitted_unix)],
  ];
}

function workersTable() {
  let job = null;
  let slow = new Set();
  const behind = (worker) => (worker.state === "running" && worker.round !== null ? lag(job, worker) : null);
  const table = new Table({
    caption: "Workers",
    key: (worker) => worker.uid,
    words: (worker) => [worker.uid, worker.node, worker.state, worker.reason, slow.has(worker.uid) ? "straggles" : ""].join(" "),
    mark: (worker) => (worker.state === "failed" ? "error" : slow.has(worker.uid) || worker.state === "killed" ? "warning" : ""),
    empty: "No worker now.",
    columns: [
      { title: "Worker", cell: (worker) => worker.uid, sort: (worker) => worker.uid },
      { title: "Node", cell: (worker) => el("a", { href: toNode(worker.node) }, worker.node), sort: (worker) => worker.node },
      { title: "State", cell: (worker) => (slow.has(worker.uid) ? "straggles" : worker.state), sort: (worker) => worker.state },
      { title: "Rank", cell: (worker) => number(worker.rank), sort: (worker) => worker.rank, numeric: true },
      { title: "Round", cell: (worker) => number(worker.round), sort: (worker) => worker.round, numeric: true },
      { title: "Behind", cell: (worker) => number(behind(worker)), sort: (worker) => behind(worker), numeric: true },
      { title: "Reason", cell: (worker) => worker.reason || "–" },
    ],
  });
  return {
    node: table.node,
    of(now) {
      job = now;
      slow = new Set(stragglers(now).map((worker) => worker.uid));
      table.update(now.workers);
    },
  };
}
