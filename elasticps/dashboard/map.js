// Which node holds which blocks, in which role. Few blocks: each one a square at its own place in
// every node's sheet, so that a move is seen as a square that appears here and vanishes there. Many:
// each node one tile, filled by role. A canvas, for a thousand tiles; the tables tell the same.

import { get, path, query } from "./api.js";
import { el, put, set } from "./dom.js";
import { bytes, number } from "./format.js";
import { toNode } from "./route.js";
import { colour } from "./theme.js";

const MOST_SHEETS = 24;
const MOST_BLOCKS = 2000;
const PAGE = 1000;
const ROLES = ["primary", "backup", "learner"];
const GLOW_MS = 1500;
const TITLE = 18;
const BESIDE = 112;
const APART = 16;
const TALLEST = 360;

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class BlockMap {
  /** Of one job, or of all where `job` is null. */
  constructor() {
    this.job = null;
    this.nodes = [];
    this.sheets = null; // node -> Map(block -> role), where there are few
    this.boxes = [];
    this.changed = new Map(); // what moved lately -> when, in ms
    this.asking = false;
    this.again = false;
    this.canvas = el("canvas", { class: "map", role: "img" });
    this.told = el("p", { class: "muted told" });
    this.node = el("div", {}, legend(), this.canvas, this.told);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.say());
    this.canvas.addEventListener("click", (event) => this.open(event));
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.node);
  }

  close() {
    this.sized.disconnect();
    cancelAnimationFrame(this.frame);
  }

  /** Asks for the map; a call meanwhile has it asked for once more. */
  async refresh(job) {
    if (job !== this.job) this.nodes = [];
    this.job = job;
    this.again = true;
    if (this.asking) return;
    this.asking = true;
    try {
      while (this.again) {
        this.again = false;
        await this.load(this.job);
      }
    } finally {
      this.asking = false;
    }
  }

  async load(job) {
    const answer = await get(job === null ? "blocks" : `blocks?${query({ job })}`);
    const holders = answer.nodes.map((row) => ({ node: row.node, ...total(row, job) }));
    const few = job !== null && answer.blocks <= MOST_BLOCKS && holders.length <= MOST_SHEETS;
    const sheets = few && answer.blocks ? await sheetsOf(job, holders) : null;
    if (job !== this.job) return;
    this.note(holders, sheets);
    Object.assign(this, { nodes: holders, sheets, blocks: answer.blocks });
    this.draw();
    this.say();
  }

  /** Remembers what is not as it was, to let it glow. */
  note(holders, sheets) {
    if (still.matches || !this.nodes.length) return;
    const now = performance.now();
    const before = new Map(this.nodes.map((row) => [row.node, row]));
    for (const row of holders) {
      const old = before.get(row.node);
      if (sheets && this.sheets) {
        for (const [block, role] of sheets.get(row.node) ?? []) {
          if (this.sheets.get(row.node)?.get(block) !== role) this.changed.set(`${row.node}/${block}`, now);
        }
      } else if (!old || ROLES.some((role) => old[role] !== row[role])) {
        this.changed.set(row.node, now);
      }
    }
  }

  draw() {
    const width = this.node.clientWidth;
    if (!width) return;
    const boxes = this.sheets ? layOut(this.nodes, this.blocks, width) : tile(this.nodes, width);
    const height = boxes.length ? Math.max(...boxes.map((box) => box.y + box.height)) + 2 : 24;
    const pen = sharp(this.canvas, width, height);
    const ink = palette();
    const now = performance.now();
    for (const box of boxes) {
      if (this.sheets) this.drawSheet(pen, ink, box, now);
      else this.drawTile(pen, ink, box, now);
    }
    this.boxes = boxes;
    for (const [key, since] of this.changed) if (now - since > GLOW_MS) this.changed.delete(key);
    cancelAnimationFrame(this.frame);
    if (this.changed.size) this.frame = requestAnimationFrame(() => this.draw());
  }

  drawSheet(pen, ink, box, now) {
    const roles = this.sheets.get(box.row.node) ?? new Map();
    pen.fillStyle = ink.text;
    pen.font = ink.font;
    pen.fillText(box.row.node, box.x, box.y + (box.left ? box.cell / 2 + 3 : 11), (box.left || box.width) - 8);
    for (let block = 0; block < this.blocks; block += 1) {
      const x = box.x + box.left + (block % box.columns) * box.cell;
      const y = box.y + box.top + Math.floor(block / box.columns) * box.cell;
      const size = box.cell - (box.cell > 4 ? 2 : 1);
      const role = roles.get(block);
      pen.fillStyle = role ? ink[role] : ink.hollow;
      pen.fillRect(x, y, size, size);
      this.glow(pen, ink, `${box.row.node}/${block}`, now, x, y, size, size);
    }
  }

  drawTile(pen, ink, { row, x, y, width, height }, now) {
    pen.fillStyle = ink.hollow;
    pen.fillRect(x, y, width, height);
    const most = this.most;
    let top = y + height;
    for (const role of ROLES) {
      const part = row[role] && Math.max(1, (row[role] / most) * height);
      pen.fillStyle = ink[role];
      pen.fillRect(x, top - part, width, part);
      top -= part;
    }
    this.glow(pen, ink, row.node, now, x, y, width, height);
  }

  get most() {
    return Math.max(1, ...this.nodes.map((row) => row.primary + row.backup + row.learner));
  }

  glow(pen, ink, key, now, x, y, width, height) {
    const since = this.changed.get(key);
    if (since === undefined || now - since > GLOW_MS) return;
    pen.globalAlpha = 1 - (now - since) / GLOW_MS;
    pen.strokeStyle = ink.text;
    pen.lineWidth = 1.5;
    pen.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
    pen.globalAlpha = 1;
  }

  under(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    return this.boxes.find((box) => x >= box.x && x < box.x + box.width && y >= box.y && y < box.y + box.height);
  }

  point(event) {
    const box = this.under(event);
    this.canvas.style.cursor = box ? "pointer" : "";
    this.say(box?.row);
  }

  open(event) {
    const box = this.under(event);
    if (box) location.hash = toNode(box.row.node);
  }

  /** About one node, or all. */
  say(row) {
    const sum = (role) => this.nodes.reduce((all, each) => all + each[role], 0);
    const all = { primary: sum("primary"), backup: sum("backup"), learner: sum("learner"), bytes: sum("bytes") };
    const told = ({ primary, backup, learner, bytes: held }) =>
      `${number(primary)} primary, ${number(backup)} backup, ${number(learner)} learner, ${bytes(held)}`;
    const cluster = `${this.job ?? "All jobs"}, ${number(this.nodes.length)} nodes: ${told(all)}`;
    put(this.told, row ? `${row.node}: ${told(row)}` : this.nodes.length ? cluster : "No blocks yet.");
    set(this.canvas, "aria-label", `Blocks by node and role. ${cluster}`);
  }
}

function legend() {
  const words = { primary: "primary: serves it", backup: "backup: in sync", learner: "learner: on its way" };
  return el("p", { class: "legend" }, ...ROLES.map((role) => el("span", { "data-role": role }, words[role])));
}

function total(row, job) {
  const parts = job === null ? Object.values(row.jobs) : [row.jobs[job] ?? {}];
  const sum = (key) => parts.reduce((all, part) => all + (part[key] ?? 0), 0);
  return { primary: sum("primary"), backup: sum("backup"), learner: sum("learner"), bytes: sum("bytes") };
}

/** Every node's blocks, and its role for each. */
async function sheetsOf(job, holders) {
  const sheets = new Map(holders.map((row) => [row.node, new Map()]));
  const give = (node, block, role) => sheets.get(node)?.set(block, role);
  let after = null;
  do {
    const { rows, next } = await get(`blocks?${query({ job, limit: PAGE, ...(after === null ? {} : { after }) })}`);
    for (const row of rows) {
      for (const node of row.learners) give(node, row.block, "learner");
      for (const node of row.backups) give(node, row.block, "backup");
      give(row.primary, row.block, "primary");
    }
    after = next ?? null;
  } while (after !== null);
  return sheets;
}

/** A sheet of squares a node, the largest squares that fit; of one line each where that is wide enough. */
function layOut(nodes, blocks, width) {
  for (let cell = 24; cell >= 3; cell -= 1) {
    const lines = blocks * cell + BESIDE <= width;
    const columns = lines ? blocks : Math.max(1, Math.min(Math.floor(width / cell), Math.ceil(Math.sqrt(blocks * 3))));
    const [left, top] = lines ? [BESIDE, 0] : [0, TITLE];
    const wide = left + columns * cell;
    const tall = top + Math.ceil(blocks / columns) * cell + (lines ? 4 : 10);
    const across = lines && nodes.length * tall <= TALLEST ? 1 : Math.max(1, Math.min(nodes.length, Math.floor((width + APART) / (wide + APART))));
    if (cell > 3 && Math.ceil(nodes.length / across) * tall > TALLEST) continue;
    if (cell > 10 && blocks * 10 + BESIDE <= width && !lines) continue;
    return nodes.map((row, index) => ({
      row, cell, columns, left, top,
      x: (index % across) * (wide + APART),
      y: Math.floor(index / across) * tall,
      width: wide,
      height: tall,
    }));
  }
  return [];
}

function tile(nodes, width) {
  const size = Math.max(8, Math.min(40, Math.floor(Math.sqrt((width * TALLEST) / Math.max(1, nodes.length)) - 3)));
  const across = Math.max(1, Math.floor((width + 3) / (size + 3)));
  return nodes.map((row, index) => ({
    row, width: size, height: size,
    x: (index % across) * (size + 3),
    y: Math.floor(index / across) * (size + 3),
  }));
}

function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

function palette() {
  const ink = Object.fromEntries([...ROLES, "hollow", "text"].map((name) => [name, colour(`--${name}`)]));
  return { ...ink, font: `12px ${getComputedStyle(document.body).fontFamily}` };
}
