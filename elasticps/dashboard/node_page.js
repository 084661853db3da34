// One node: how it is, its processes, its blocks page by page, what happened to it.

import { drain, undrain } from "./act.js";
import { get, query } from "./api.js";
import { el, keyed, put, set } from "./dom.js";
import { bytes, number } from "./format.js";
import { stateOf, trouble } from "./nodes.js";
import { card, Changes, Facts, placesOf } from "./parts.js";
import { toNode } from "./route.js";
import { final, may, nodeNamed, state } from "./store.js";
import { Table } from "./table.js";
import { EventList } from "./timeline.js";

const ROWS = 50;
const ROWS_MS = 1000;

export class NodePage {
  constructor(name) {
    this.name = name;
    this.state = el("span", { class: "state" });
    this.drain = el("button", { type: "button", hidden: true, onclick: () => drain(name) }, "Drain");
    this.undrain = el("button", { type: "button", hidden: true, onclick: () => undrain(name) }, "Take back");
    this.facts = new Facts();
    this.children = childrenTable();
    this.blocks = new NodeBlocks(name);
    this.events = new EventList();
    this.gone = el("p", { class: "notice", hidden: true }, "No such node is in the cluster now. What happened to it is below.");
    this.body = el("div", { class: "columns even" }, card("Node", this.facts.node), card("Processes", this.children.node));
    this.blocksCard = card("Blocks held", this.blocks.node);
    this.node = el("div", { class: "page" },
      el("p", { class: "crumb" }, el("a", { href: "#/" }, "Overview"), " / nodes"),
      el("div", { class: "title" }, el("h1", { tabindex: "-1" }, name), this.state, el("span", { class: "spring" }), this.drain, this.undrain),
      this.gone, this.body, this.blocksCard, card("Timeline", this.events.node));
  }

  close() {
    this.blocks.close();
  }

  update({ status, events }) {
    if (!status) return;
    const node = nodeNamed(this.name);
    this.events.update(events.filter((event) => event.node === this.name));
    this.gone.hidden = Boolean(node);
    this.body.hidden = this.blocksCard.hidden = !node;
    this.drain.hidden = !node || !may("admin") || node.state !== "ready";
    this.undrain.hidden = !node || !may("admin") || node.state === "ready";
    put(this.state, node ? stateOf(node) : "gone");
    set(this.state, "data-mark", node ? trouble(node) : "warning");
    if (!node) return;
    this.facts.update(factsOf(node));
    this.children.update(node.children);
    this.blocks.update(status);
  }
}

const factsOf = (node) => [
  ["Leader of the cluster", node.leader ? "yes" : "no"],
  ["Leads", `${number(node.leads)} blocks`],
  ["Has copies of", `${number(node.replicas)} blocks`],
  ["Holds", bytes(node.bytes_held)],
  ["Workers", number(node.workers.length)],
  ["Weight", number(node.weight)],
  ["Zone", node.zone || "–"],
  ["Labels", Object.entries(node.labels).map(([key, value]) => `${key}=${value}`).join(", ") || "–"],
  ["API", node.http],
  ["Machine", node.machine],
  ["Incarnation", node.incarnation],
  ["Version", node.version],
];

function childrenTable() {
  return new Table({
    caption: "Processes",
    key: (child) => child.name,
    mark: (child) => ({ "gave-up": "error", "backing-off": "warning" })[child.state] ?? "",
    empty: "No process, or the node does not answer.",
    columns: [
      { title: "Process", cell: (child) => child.name, sort: (child) => child.name },
      { title: "State", cell: (child) => child.state, sort: (child) => child.state },
      { title: "PID", cell: (child) => child.pid ?? "–", numeric: true },
      { title: "Restarts", cell: (child) => number(child.restarts), sort: (child) => child.restarts, numeric: true },
      { title: "Last exit", cell: (child) => child.last_exit ?? "–" },
    ],
  });
}

/** The rows of one job's blocks on the node, a page at a time: there may be a hundred thousand. */
class NodeBlocks {
  constructor(node) {
    this.name = node;
    this.starts = [null]; // the "after" of each page so far
    this.job = el("select", { "aria-label": "Job", onchange: () => this.restart() });
    this.counts = el("span", { class: "muted" });
    this.back = el("button", { type: "button", disabled: true, onclick: () => this.turn(-1) }, "Previous");
    this.next = el("button", { type: "button", disabled: true, onclick: () => this.turn(1) }, "Next");
    this.table = blocksTable(node);
    this.node = el("div", {}, el("p", { class: "tools" }, this.job, this.counts, el("span", { class: "spring" }), this.back, this.next), this.table.node);
    this.places = new Changes(() => this.load(), ROWS_MS);
  }

  close() {
    this.places.close();
  }

  update(status) {
    const before = this.job.value;
    const jobs = status.jobs.filter((job) => !final(job));
    keyed(this.job, jobs, (job) => job.job, (job) => el("option", { value: job.job }, job.job), () => {});
    if (before && jobs.some((job) => job.job === before)) this.job.value = before;
    this.job.hidden = jobs.length < 2;
    if (this.job.value) this.places.see(placesOf(status) + this.job.value);
    else this.table.update([]);
  }

  restart() {
    this.starts = [null];
    this.load();
  }

  turn(by) {
    if (by < 0) this.starts.pop();
    else this.starts.push(this.after);
    this.load();
  }

  async load() {
    const start = this.starts.at(-1);
    const job = this.job.value;
    const answer = await get(`blocks?${query({ job, node: this.name, limit: ROWS, ...(start === null ? {} : { after: start }) })}`);
    if (job !== this.job.value || start !== this.starts.at(-1)) return;
    const mine = answer.nodes.find((row) => row.node === this.name)?.jobs[job] ?? {};
    put(this.counts, `${number(mine.primary ?? 0)} primary, ${number(mine.backup ?? 0)} backup, ${number(mine.learner ?? 0)} learner, ${bytes(mine.bytes ?? 0)}`);
    this.after = answer.next ?? null;
    this.back.disabled = this.starts.length === 1;
    this.next.disabled = this.after === null;
    this.table.update(answer.rows);
  }
}

function blocksTable(node) {
  const roleOf = (row) => (row.primary === node ? "primary" : row.backups.includes(node) ? "backup" : "learner");
  const others = (names) => {
    const links = names.filter((name) => name !== node).flatMap((name) => [" ", el("a", { href: toNode(name) }, name)]);
    return links.length ? el("span", {}, ...links.slice(1)) : "–";
  };
  const table = new Table({
    caption: "Blocks held",
    key: (row) => row.block,
    empty: "It holds none.",
    columns: [
      { title: "Block", cell: (row) => String(row.block) },
      { title: "Parameter", cell: (row) => row.name ?? "–" },
      { title: "Role here", cell: (row) => el("span", { class: "role", "data-role": roleOf(row) }, roleOf(row)) },
      { title: "Size", cell: (row) => bytes(row.bytes), numeric: true },
      { title: "Primary", cell: (row) => (row.primary === node ? "here" : row.primary ? el("a", { href: toNode(row.primary) }, row.primary) : "none") },
      { title: "Backups elsewhere", cell: (row) => others(row.backups) },
      { title: "Learners elsewhere", cell: (row) => others(row.learners) },
      { title: "Epoch", cell: (row) => number(row.epoch), numeric: true },
    ],
    rows: ROWS,
  });
  return table;
}

