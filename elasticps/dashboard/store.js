// What the page knows of the cluster, in one place; views are told once a frame that it changed.

const MOST_EVENTS = 2000;

export const state = {
  status: null, // the answer of GET /api/v1/status
  events: [], // the timeline, oldest first
  role: null,
  name: null,
  live: "waiting", // waiting, live, lost, token
  why: "", // it is not live
  heard: null, // when there was last word, in ms since 1970
};

const readers = new Set();
let due = false;

export function change(fields) {
  Object.assign(state, fields);
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    for (const reader of readers) reader(state);
  });
}

/** Returns what ends it. */
export function onChange(reader) {
  readers.add(reader);
  return () => readers.delete(reader);
}

export function addEvents(rows) {
  const known = new Set(state.events.slice(-MOST_EVENTS).map((row) => row.id));
  const fresh = rows.filter((row) => !known.has(row.id));
  if (fresh.length) change({ events: [...state.events, ...fresh].slice(-MOST_EVENTS) });
}

const RANK = { read: 0, submit: 1, admin: 2 };
export const may = (role) => RANK[state.role] >= RANK[role];
export const mayCancel = (job) =>
  may("admin") || (may("submit") && job.owner === state.name);

/** The events that are of no job, or of this one: an earlier job may have had its name. */
export const eventsOf = (events, name, job) =>
  events.filter((event) => !event.job || (event.job === name && (!job || event.job_key === job.key)));

export const jobNamed = (name) => state.status?.jobs.find((job) => job.job === name);
export const nodeNamed = (name) => state.status?.nodes.find((node) => node.node === name);
export const final = (job) => ["SUCCEEDED", "FAILED", "CANCELLED"].includes(job.state);
