// The jobs at a glance: where each is, how fast, and how far its workers are apart.

import { spark } from "./chart.js";
import { lossOf, newest } from "./curves.js";
import { el } from "./dom.js";
import { number, rate } from "./format.js";
import { lag, stragglers } from "./health.js";
import { toJob } from "./route.js";
import { final } from "./store.js";
import { Table } from "./table.js";

/** `seriesOf(name)` gives what is known of a job's curves, or undefined. */
export function jobsTable(seriesOf) {
  const points = (job) => seriesOf(job.job)?.points ?? [];
  return new Table({
    caption: "Jobs",
    key: (job) => job.job,
    words: (job) => [job.job, job.state, job.script, job.strategy, job.owner].join(" "),
    mark: (job) => (job.state === "FAILED" ? "error" : job.under_replicated || stragglers(job).length ? "warning" : ""),
    empty: "No job yet: elasticps submit train.py",
    columns: [
      { title: "Job", cell: (job) => el("a", { href: toJob(job.job) }, job.job), sort: (job) => job.job },
      { title: "State", cell: (job) => el("span", { class: "state", "data-state": job.state }, job.state.toLowerCase()), sort: (job) => job.state },
      { title: "Round", cell: (job) => number(job.round), sort: (job) => job.round ?? 0, numeric: true },
      { title: "Loss", cell: (job) => beside(spark(points(job).map(firstMetric)), lossOf(job.metrics)), numeric: true },
      { title: "Rounds a second", cell: (job) => pace(job, points(job)), sort: (job) => speed(job, points(job)) ?? 0, numeric: true },
      { title: "Workers", cell: (job) => number(running(job).length), sort: (job) => running(job).length, numeric: true },
      { title: "Staleness", cell: (job) => (final(job) ? "–" : number(staleness(job, points(job)))), sort: (job) => staleness(job, points(job)), numeric: true },
      { title: "Stragglers", cell: (job) => (final(job) ? "–" : number(stragglers(job).length)), sort: (job) => stragglers(job).length, numeric: true },
      { title: "Moving", cell: moving, sort: (job) => job.pending_moves, numeric: true },
    ],
  });
}

const beside = (picture, words) => el("span", { class: "with-spark" }, picture, el("span", {}, words));

const pace = (job, points) =>
  beside(spark(points.map((point) => point.rounds_per_s)), rate(final(job) ? null : speed(job, points)));

const moving = (job) => (job.pending_moves ? `${number(job.pending_moves)} of ${number(job.blocks)}` : "–");

const firstMetric = (point) => point.metrics?.loss ?? Object.values(point.metrics ?? {})[0] ?? null;

export const running = (job) => job.workers.filter((worker) => worker.state === "running");

export const speed = (job, points) => newest(points).rounds_per_s ?? (job.step_s ? 1 / job.step_s : null);

/** Rounds between the first and the last of the workers that take part. */
export function staleness(job, points) {
  const told = newest(points).staleness;
  if (told !== null && told !== undefined) return told;
  if (job.consistency === "sync") return 0; // workers tell their rounds at different moments
  return Math.max(0, ...running(job).filter((worker) => worker.round !== null).map((worker) => lag(job, worker)));
}
