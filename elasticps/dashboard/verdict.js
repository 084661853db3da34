// The first line of the page: all is well, or what is not.

import { el, keyed, put, set } from "./dom.js";
import { clock } from "./format.js";
import { findings } from "./health.js";
import { toNode } from "./route.js";

const MOST = 12;
const RECENT_S = 300;
const MOST_RECENT = 3;

export class Verdict {
  constructor() {
    this.line = el("p", { class: "verdict-line", role: "status" });
    this.list = el("ul", { class: "findings" });
    this.node = el("section", { class: "verdict", "aria-label": "Health" }, this.line, this.list);
  }

  update(state) {
    const nowS = Date.now() / 1000;
    const found = state.status ? [...recent(state.events, nowS), ...findings(state.status, nowS)] : [];
    if (state.live === "lost" && state.heard) {
      found.unshift({ severity: "error", text: `No word from this daemon since ${clock(state.heard / 1000)}: what you see is from then` });
    }
    const worst = ["error", "warning"].find((severity) => found.some((each) => each.severity === severity)) ?? "info";
    set(this.node, "data-severity", worst);
    put(this.line, state.status ? summary(found) : state.why || "Asking the daemon …");
    const shown = found.slice(0, MOST);
    if (found.length > MOST) shown.push({ severity: "info", text: `and ${found.length - MOST} more` });
    keyed(this.list, shown, (each) => `${each.severity} ${each.text}`, row, () => {});
    this.list.hidden = !shown.length;
  }
}

/** What went wrong in the last minutes, even where the cluster has coped with it since. */
const recent = (events, nowS) =>
  events
    .filter((event) => event.severity === "error" && nowS - event.unix_s < RECENT_S)
    .slice(-MOST_RECENT)
    .map((event) => ({ severity: "warning", text: `${clock(event.unix_s)} ${event.what}`, href: event.node && toNode(event.node) }));

function summary(found) {
  const errors = found.filter((each) => each.severity === "error").length;
  const warnings = found.filter((each) => each.severity === "warning").length;
  if (errors) return errors === 1 ? "Something is wrong" : `${errors} things are wrong`;
  if (warnings) return warnings === 1 ? "One thing needs a look" : `${warnings} things need a look`;
  return "All is well";
}

const row = ({ severity, text, href }) =>
  el("li", { "data-severity": severity }, el("span", { class: "sr" }, `${severity}: `), href ? el("a", { href }, text) : text);
