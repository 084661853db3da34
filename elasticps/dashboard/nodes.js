// The nodes with their load, as a table that stays quick with a thousand of them.

import { el, svg } from "./dom.js";
import { bytes, number } from "./format.js";
import { toNode } from "./route.js";
import { Table } from "./table.js";

const BAR = 96;

export function nodesTable() {
  let most = 1;
  const table = new Table({
    caption: "Nodes",
    key: (node) => node.node,
    words: (node) => [node.node, node.state, node.zone, node.machine, node.leader ? "leader" : "", node.reachable ? "" : "unreachable",
      ...Object.entries(node.labels).map(([key, value]) => `${key}=${value}`)].join(" "),
    mark: trouble,
    empty: "No node is registered.",
    columns: [
      { title: "Node", cell: name, sort: (node) => node.node },
      { title: "State", cell: stateOf, sort: stateOf },
      { title: "Zone", cell: (node) => node.zone || "–", sort: (node) => node.zone },
      { title: "Held", cell: (node) => bytes(node.bytes_held), sort: (node) => node.bytes_held, numeric: true },
      { title: "Load", cell: (node) => bar(node.bytes_held / node.weight / most), sort: (node) => node.bytes_held / node.weight },
      { title: "Leads", cell: (node) => number(node.leads), sort: (node) => node.leads, numeric: true },
      { title: "Copies", cell: (node) => number(node.replicas), sort: (node) => node.replicas, numeric: true },
      { title: "Workers", cell: (node) => number(node.workers.length), sort: (node) => node.workers.length, numeric: true },
      { title: "Restarts", cell: (node) => number(restarts(node)), sort: restarts, numeric: true },
      { title: "Version", cell: (node) => node.version, sort: (node) => node.version },
    ],
  });
  return {
    node: table.node,
    update(nodes) {
      most = Math.max(1, ...nodes.map((node) => node.bytes_held / node.weight));
      table.update(nodes);
    },
  };
}

const restarts = (node) => node.children.reduce((all, child) => all + child.restarts, 0);

export const trouble = (node) =>
  !node.reachable || node.children.some((child) => child.state === "gave-up" || child.state === "backing-off")
    ? "warning" : node.state === "ready" ? "" : "info";

export const stateOf = (node) => (node.reachable ? node.state : "does not answer");

function name(node) {
  const link = el("a", { href: toNode(node.node) }, node.node);
  return node.leader ? el("span", {}, link, el("span", { class: "tag" }, "leader")) : link;
}

/** What it holds for its weight, beside the fullest. */
function bar(part) {
  return svg("svg", { class: "bar-chart", width: BAR, height: 10, role: "img", "aria-label": `${Math.round(part * 100)} % of the fullest` },
    svg("rect", { class: "bar-back", width: BAR, height: 10, rx: 2 }),
    svg("rect", { class: "bar-front", width: Math.round(part * BAR), height: 10, rx: 2 }));
}
