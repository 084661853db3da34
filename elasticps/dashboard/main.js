// The page's beginning: who reads it, the stream that feeds it, and which page is shown.

import { alertsIn } from "./act.js";
import { get, keepToken, query } from "./api.js";
import { askToken } from "./dialog.js";
import { put, set } from "./dom.js";
import { JobPage } from "./job_page.js";
import { NodePage } from "./node_page.js";
import { Overview } from "./overview.js";
import { here } from "./route.js";
import { addEvents, change, onChange, state } from "./store.js";
import { Stream } from "./stream.js";
import { themeButton } from "./theme.js";

const EVENTS = 1000;
const AGAIN_MS = 3000;
const WORDS = { waiting: "connecting", live: "live", lost: "no connection", token: "needs a token" };

const main = document.getElementById("main");
let page = null;
let stream = null;

function show(first = false) {
  const { kind, name } = here();
  page?.close();
  if (kind === "node" && name) page = new NodePage(name);
  else if (kind === "job" && name) page = new JobPage(name);
  else page = new Overview();
  main.replaceChildren(page.node);
  document.title = name ? `${name} – elasticps` : "elasticps";
  page.update(state);
  document.getElementById("alert").textContent = "";
  if (first) return;
  scrollTo(0, 0);
  main.querySelector("h1").focus();
}

function showBar({ status, live, why, role, name }) {
  const lamp = document.getElementById("live");
  put(lamp, WORDS[live]);
  set(lamp, "data-state", live);
  set(lamp, "title", why);
  put(document.getElementById("cluster"), status ? `${status.cluster} ${status.version}` : "");
  put(document.getElementById("who"), role ? [name, role].filter(Boolean).join(", ") : "");
}

/** Asks who reads this until the daemon says so; a token is asked for where it wants one. */
async function meet() {
  while (true) {
    try {
      change(await get("whoami"));
      return;
    } catch (error) {
      change({ live: error.status === 401 ? "token" : "lost", why: error.message });
      if (error.status === 401) keepToken((await askToken(error.message)) ?? "");
      else await new Promise((resume) => setTimeout(resume, AGAIN_MS));
    }
  }
}

/** What the daemon remembers of the timeline; the stream goes on from its end. */
async function past() {
  const { events, next } = await get(`events?${query({ limit: EVENTS })}`);
  addEvents(events);
  return next;
}

async function listen() {
  stream?.stop();
  const mine = new Stream("stream", { onMessage: take, onState: lamp });
  stream = mine;
  await meet();
  try {
    mine.last = await past();
  } catch (error) {
    lamp("lost", error.message); // the stream tells the timeline too, as far as it remembers
  }
  mine.run(); // which ends at once where it was stopped meanwhile
}

function take({ event, data }) {
  if (event === "status") change({ status: data, heard: Date.now() });
  if (event === "event") addEvents([data]);
}

function lamp(live, why = "") {
  if (live !== state.live || why !== state.why) change({ live, why });
  if (live === "token") listen(); // it was revoked meanwhile
}

// A page that nobody looks at keeps no connection.
document.addEventListener("visibilitychange", () => {
  if (!stream) return;
  if (document.hidden) stream.stop();
  else listen();
});
addEventListener("hashchange", () => show());
alertsIn(document.getElementById("alert"));
themeButton(document.getElementById("theme"), () => page?.map?.draw());
onChange((now) => {
  showBar(now);
  page.update(now);
});
show(true);
listen();
