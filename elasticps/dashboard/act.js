// What changes the cluster. Each is asked about first; what is refused is told.

import { ask, path } from "./api.js";
import { confirm } from "./dialog.js";

let alertLine;

export const alertsIn = (node) => (alertLine = node);

export async function drain(node) {
  const sure = await confirm({
    title: `Drain ${node}?`,
    text: `Its blocks and workers move to other nodes while training goes on. When it is empty its daemon leaves the cluster.`,
    action: "Drain it",
    options: [{ name: "stay", label: "Keep the daemon, empty, in the cluster" }],
  });
  if (sure) await tried(`drain ${node}`, `nodes/${path(node)}/drain`, { method: "POST", body: sure });
}

export const undrain = (node) =>
  tried(`take ${node} back`, `nodes/${path(node)}/drain`, { method: "DELETE" });

export async function cancel(job) {
  const sure = await confirm({
    title: `Cancel ${job}?`,
    text: "Its workers are stopped and its blocks dropped. A checkpoint that was written stays.",
    action: "Cancel the job",
  });
  if (sure) await tried(`cancel ${job}`, `jobs/${path(job)}/cancel`, { method: "POST" });
}

async function tried(what, where, options) {
  alertLine.textContent = "";
  try {
    await ask(where, options);
  } catch (error) {
    alertLine.textContent = `Could not ${what}: ${error.message}`;
  }
}
