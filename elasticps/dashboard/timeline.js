// What happened: marks on lanes over the curves' time axis, and the same as a list.

import { LEFT, RIGHT, scale } from "./chart.js";
import { el, keyed, set, svg } from "./dom.js";
import { clock, day, iso, number } from "./format.js";
import { toJob, toNode } from "./route.js";

const LANES = [
  { title: "nodes", kinds: ["join", "leave", "drain"] },
  { title: "failover", kinds: ["failover", "election"] },
  { title: "moves", kinds: ["rebalance", "move"] },
  { title: "saved", kinds: ["checkpoint"] },
  { title: "jobs", kinds: ["job"] },
];
const LANE = 18;
const APART = 9;
const SHAPES = {
  join: "M-5 4L0 -5L5 4Z",
  leave: "M-5 -4L0 5L5 -4Z",
  drain: "M-5 0L0 -5L5 0L0 5Z",
  failover: "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
  checkpoint: "M-4 -4H4V4H-4Z",
};
const ROUND = "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z";
const WORST = ["info", "warning", "error"];
const THROUGH = new Set(["join", "leave", "failover", "rebalance", "checkpoint"]);
const PAGE = 40;
const MOST_HAIRLINES = 24;

/** Times at which hairlines go through the curves. */
export function hairlines(events, span) {
  const inside = events.filter((event) => THROUGH.has(event.kind) && event.unix_s >= span[0] && event.unix_s <= span[1]);
  const many = inside.length > MOST_HAIRLINES;
  return inside
    .filter((event) => !many || event.severity !== "info")
    .slice(-MOST_HAIRLINES)
    .map((event) => ({ at: event.unix_s, severity: event.severity }));
}

export class Lanes {
  constructor() {
    this.svg = svg("svg", { role: "img", class: "lanes" });
    this.node = el("figure", { class: "curve" }, el("figcaption", {}, el("span", { class: "chart-title" }, "Events")), this.svg);
  }

  update({ events, span, width }) {
    const x = scale(span, [LEFT, width - RIGHT]);
    const inside = events.filter((event) => event.unix_s >= span[0] && event.unix_s <= span[1]);
    const height = LANES.length * LANE;
    set(this.svg, "width", width);
    set(this.svg, "height", height);
    set(this.svg, "viewBox", `0 0 ${width} ${height}`);
    set(this.svg, "aria-label", `${number(inside.length)} events between ${clock(span[0])} and ${clock(span[1])}; the list below tells them`);
    this.svg.replaceChildren(...LANES.flatMap((lane, index) => {
      const y = index * LANE + LANE / 2;
      const marks = merged(inside.filter((event) => lane.kinds.includes(event.kind)), x);
      return [
        svg("text", { class: "tick", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, lane.title),
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
        ...marks.map((mark) => drawn(mark, y)),
      ];
    }));
  }
}

/** Marks that would lie on each other become one, as bad as the worst of them. */
function merged(events, x) {
  const marks = [];
  for (const event of events) {
    const at = x(event.unix_s);
    const last = marks.at(-1);
    if (last && at - last.at < APART) {
      last.events.push(event);
      if (WORST.indexOf(event.severity) >= WORST.indexOf(last.severity)) {
        Object.assign(last, { severity: event.severity, kind: event.kind });
      }
    } else {
      marks.push({ at, severity: event.severity, kind: event.kind, events: [event] });
    }
  }
  return marks;
}

function drawn(mark, y) {
  const told = mark.events.slice(0, 12).map((event) => `${clock(event.unix_s)} ${event.what}`);
  if (mark.events.length > 12) told.push(`and ${mark.events.length - 12} more`);
  return svg(
    "path",
    { class: "event", "data-severity": mark.severity, "data-kind": mark.kind, d: SHAPES[mark.kind] ?? ROUND, transform: `translate(${mark.at.toFixed(1)} ${y})` },
    svg("title", {}, told.join("\n")),
  );
}

/** The newest first; older ones on demand. */
export class EventList {
  constructor() {
    this.shown = PAGE;
    this.kind = el("select", { "aria-label": "Kind of event", onchange: () => this.show() }, el("option", { value: "" }, "all kinds"),
      ...LANES.flatMap((lane) => lane.kinds).map((kind) => el("option", { value: kind }, kind)));
    this.list = el("ol", { class: "events", tabindex: "0", role: "list", "aria-label": "Events, the newest first" });
    this.more = el("button", { type: "button", onclick: () => this.grow() }, "Older");
    this.none = el("p", { class: "muted" }, "Nothing has happened yet.");
    this.node = el("div", {}, el("p", { class: "tools" }, this.kind), this.none, this.list, this.more);
    this.events = [];
  }

  grow() {
    this.shown += PAGE;
    this.show();
  }

  update(events) {
    this.events = events;
    this.show();
  }

  show() {
    const kind = this.kind.value;
    const rows = this.events.filter((event) => !kind || event.kind === kind).reverse();
    keyed(this.list, rows.slice(0, this.shown), (event) => event.id, item, () => {});
    this.more.hidden = rows.length <= this.shown;
    this.none.hidden = rows.length > 0;
  }
}

function item(event) {
  return el("li", { "data-severity": event.severity },
    el("time", { datetime: iso(event.unix_s), title: day(event.unix_s) }, clock(event.unix_s)),
    el("span", { class: "kind" }, event.kind),
    el("span", { class: "what" }, ...linked(event)));
}

/** What happened, with the names of its node and job as links; names that are not in it follow. */
function linked({ what, node, job }) {
  const links = [[node, toNode], [job, toJob]].filter(([name]) => name);
  let parts = [what];
  for (const [name, to] of links) {
    const place = parts.findIndex((part) => typeof part === "string" && words(name).test(part));
    const link = el("a", { href: to(name) }, name);
    if (place < 0) {
      parts.push(" ", link);
    } else {
      const at = parts[place].search(words(name));
      parts.splice(place, 1, parts[place].slice(0, at), link, parts[place].slice(at + name.length));
    }
  }
  return parts;
}

/** The name by itself, and not as a part of a longer one. */
const words = (name) => new RegExp(`(?<![\\w.-])${name.replace(/[^\w]/g, "\\$&")}(?![\\w-]|\\.\\w)`);
