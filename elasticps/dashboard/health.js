// Whether all is well, and why not. Pure: a status in, findings out, worst first.

import { number } from "./format.js";

const STRAGGLING_S = 2;
const RECENT_S = 3600;
const ORDER = { error: 0, warning: 1, info: 2 };

/** The workers of a job that are more than two seconds' worth of rounds behind its newest. */
export function stragglers(job) {
  if (job.state !== "RUNNING" || !job.step_s || job.round === null) return [];
  return job.workers.filter(
    (worker) => worker.state === "running" && worker.round !== null && worker.rank !== null
      && lag(job, worker) > 1 && lag(job, worker) * job.step_s > STRAGGLING_S,
  );
}

/** Rounds behind the job's newest. */
export const lag = (job, worker) => Math.max(0, (job.round ?? 0) - (worker.round ?? 0));

/** `{severity, text, href}` for each thing that someone who looks after the cluster wants to know. */
export function findings(status, nowS) {
  const found = [
    ...(status.leader ? [] : [{ severity: "error", text: "No leader: nothing is planned until one is elected" }]),
    ...together(status.nodes.flatMap(ofNode), "nodes"),
    ...status.jobs.flatMap((job) => ofJob(job, nowS)),
  ];
  return found.sort((one, other) => ORDER[one.severity] - ORDER[other.severity]);
}

function ofNode(node) {
  const href = `#/node/${encodeURIComponent(node.node)}`;
  const found = [];
  const say = (severity, what) => found.push({ severity, what, who: node.node, text: `${node.node} ${what}`, href });
  if (!node.reachable) say("warning", "does not answer");
  for (const child of node.children) {
    if (child.state === "gave-up") say("error", `has given up on ${child.name}`);
    if (child.state === "backing-off") say("warning", `starts ${child.name} again and again`);
  }
  if (node.state === "draining") say("info", "drains");
  if (node.state === "drained") say("info", "is drained");
  return found;
}

/** One line for many nodes with the same trouble: a thousand lines tell less. */
function together(found, noun) {
  const groups = new Map();
  for (const each of found) {
    const key = `${each.severity} ${each.what}`;
    groups.set(key, [...(groups.get(key) ?? []), each]);
  }
  return [...groups.values()].flatMap((group) => {
    if (group.length <= 3) return group;
    const names = group.slice(0, 3).map((each) => each.who).join(", ");
    const [{ severity, what }] = group;
    return [{ severity, text: `${group.length} ${noun}: “${what}”: ${names} and ${group.length - 3} more`, href: "#/" }];
  });
}

function ofJob(job, nowS) {
  const href = `#/job/${encodeURIComponent(job.job)}`;
  const found = [];
  const say = (severity, what) => found.push({ severity, text: `${job.job}: ${what}`, href });
  const { verdict, checkpoint } = job;
  if (verdict.lost || verdict.duplicated) {
    say("error", `the audit found ${verdict.lost} pushes lost, ${verdict.duplicated} doubled`);
  }
  if (job.state === "FAILED" && nowS - job.ended_unix < RECENT_S) say("error", `failed: ${job.reason}`);
  if (job.state === "PENDING") say("info", `waits: ${job.reason || "for its workers"}`);
  if (job.state !== "RUNNING") return found;
  if (job.under_replicated) {
    say("warning", `${number(job.under_replicated)} of ${number(job.blocks)} blocks have fewer than ${job.replicas} copies`);
  }
  const behind = stragglers(job);
  if (behind.length) {
    const names = behind.slice(0, 3).map((worker) => worker.uid).join(", ");
    const alive = job.workers.filter((worker) => worker.state === "running").length;
    say("warning", `${number(behind.length)} of ${number(alive)} workers straggle: ${names}`);
  }
  for (const [name, value] of Object.entries(job.metrics ?? {})) {
    if (value === null) say("error", `${name} is not a number`);
  }
  if (checkpoint?.error) say("warning", `the last checkpoint failed: ${checkpoint.error}`);
  if (job.pending_moves) say("info", `${number(job.pending_moves)} of ${number(job.blocks)} blocks are moving`);
  return found;
}
