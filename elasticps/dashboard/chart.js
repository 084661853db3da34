// One curve over time, as SVG: a line that breaks where there is no number, ticks that are round.

import { el, put, set, svg } from "./dom.js";
import { clock, number } from "./format.js";

export const LEFT = 64;
export const RIGHT = 14;
const TOP = 8;
const BOTTOM = 20;
const HEIGHT = 132;
const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];

export class Chart {
  /** `pick(point)` gives the number, `show(value)` writes it; ticks are round in `base`, or `whole`. */
  constructor({ title, pick, show = number, base = 10, whole = false, fromZero = whole }) {
    Object.assign(this, { pick, show, base, whole, fromZero });
    this.title = el("span", { class: "chart-title" }, title);
    this.reading = el("span", { class: "chart-value" });
    this.svg = svg("svg", { role: "img", height: HEIGHT, class: "chart" });
    this.node = el("figure", { class: "curve" }, el("figcaption", {}, this.title, this.reading), this.svg);
  }

  /** `span` is [from, to] in unix seconds; `marks` are times to draw a hairline at. */
  update({ points, span, width, marks = [], log = false, hover = null }) {
    const rows = points
      .map((point) => ({ at: point.unix_s, value: this.pick(point) ?? null }))
      .map((row) => (log && row.value !== null && row.value <= 0 ? { ...row, value: null } : row));
    const values = rows.filter((row) => row.value !== null && row.at >= span[0] && row.at <= span[1]);
    const x = scale(span, [LEFT, width - RIGHT]);
    const { y, ticks } = vertical(values.map((row) => row.value), log, this);
    const nearest = hover === null ? values.at(-1) : nearestTo(values, hover);
    set(this.svg, "width", width);
    set(this.svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
    set(this.svg, "aria-label", this.told(values));
    put(this.reading, nearest ? this.show(nearest.value) : "no numbers yet");
    set(this.reading, "data-empty", !nearest);
    this.svg.replaceChildren(
      ...ticks.flatMap((tick) => [
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
        label(this.show(tick), { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }),
      ]),
      ...timeTicks(span, width).map((tick) =>
        label(clock(tick), { x: x(tick), y: HEIGHT - 4, "text-anchor": "middle" })),
      ...marks.map((mark) =>
        svg("line", { class: "mark", "data-severity": mark.severity, x1: x(mark.at), x2: x(mark.at), y1: 0, y2: HEIGHT - BOTTOM })),
      svg("path", { class: "line", d: pathOf(rows, span, x, y, width) }),
      ...(values.length === 1 ? [dot(values[0], x, y)] : []),
      ...(nearest && hover !== null
        ? [svg("line", { class: "cross", x1: x(nearest.at), x2: x(nearest.at), y1: 0, y2: HEIGHT - BOTTOM }), dot(nearest, x, y)]
        : []),
    );
  }

  told(values) {
    if (!values.length) return `${this.title.textContent}: no numbers yet`;
    const [first, last] = [values[0], values.at(-1)];
    return `${this.title.textContent}: ${this.show(last.value)} at ${clock(last.at)}, from ${this.show(first.value)} at ${clock(first.at)}`;
  }
}

const label = (text, props) => svg("text", { class: "tick", ...props }, text);
const dot = (row, x, y) => svg("circle", { class: "dot", cx: x(row.at), cy: y(row.value), r: 3 });

export const scale = ([from, to], [low, high]) => (value) =>
  low + ((value - from) / (to - from || 1)) * (high - low);

export function nearestTo(rows, at) {
  return rows.reduce(
    (best, row) => (!best || Math.abs(row.at - at) < Math.abs(best.at - at) ? row : best), undefined);
}

function vertical(values, log, { base, whole, fromZero }) {
  if (!values.length) return { y: () => TOP, ticks: [] };
  const shape = log ? Math.log10 : (value) => value;
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (!log && low > 0 && (fromZero || low < high * 0.6)) low = 0;
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [Math.min(0, low), high || 1];
  const position = scale([shape(low), shape(high)], [HEIGHT - BOTTOM, TOP]);
  return { y: (value) => position(shape(value)), ticks: log ? decades(low, high) : round(low, high, base, whole) };
}

function round(low, high, base, whole) {
  const unit = base ** Math.max(0, Math.floor(Math.log(high - low) / Math.log(base)));
  const raw = (high - low) / 5 / (base === 10 ? 1 : unit);
  const size = 10 ** Math.floor(Math.log10(raw));
  const nice = [1, 2, 5, 10].map((each) => each * size).find((each) => each >= raw);
  const step = Math.max(whole ? 1 : 0, nice * (base === 10 ? 1 : unit));
  const ticks = [];
  for (let each = Math.ceil(low / step); each * step <= high + step * 1e-9; each += 1) {
    ticks.push(Number((each * step).toPrecision(12)));
  }
  return ticks;
}

function decades(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
    for (const each of [1, 3]) {
      const tick = Number((each * 10 ** power).toPrecision(3));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks.length > 1 ? ticks.slice(0, 6) : [low, high];
}

function timeTicks([from, to], width) {
  const most = Math.max(2, Math.floor((width - LEFT - RIGHT) / 110));
  const step = STEPS_S.find((each) => (to - from) / each <= most) ?? 86400 * Math.ceil((to - from) / 86400 / most);
  const zone = new Date(from * 1000).getTimezoneOffset() * 60; // ticks are round where the reader lives
  const ticks = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) ticks.push(at);
  return ticks;
}

/** At most one low and one high a pixel: a day of rounds draws as quickly as a minute of them. */
function pathOf(rows, span, x, y, width) {
  const inside = rows.filter((row) => row.at >= span[0] && row.at <= span[1]);
  const thin = inside.length > width * 2;
  let path = "";
  let pen = "M";
  let column = null;
  const draw = (row) => {
    path += `${pen}${x(row.at).toFixed(1)} ${y(row.value).toFixed(1)}`;
    pen = "L";
  };
  for (const row of inside) {
    if (row.value === null) {
      pen = "M";
      column = null;
    } else if (!thin) {
      draw(row);
    } else if (column?.pixel === Math.floor(x(row.at))) {
      column.last = row;
      if (Math.abs(row.value - column.first) > column.reach) {
        column.reach = Math.abs(row.value - column.first);
        draw(row);
      }
    } else {
      if (column?.last) draw(column.last);
      column = { pixel: Math.floor(x(row.at)), first: row.value, reach: 0, last: null };
      draw(row);
    }
  }
  return path;
}

/** A curve the size of a word; what it shows stands beside it as text. */
export function spark(values, width = 110, height = 22) {
  const known = averaged(values.filter((value) => value !== null && value !== undefined), width / 2);
  const picture = svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  if (known.length < 2) return picture;
  const y = scale([Math.min(...known), Math.max(...known)], [height - 2, 2]);
  const x = scale([0, known.length - 1], [1, width - 1]);
  const path = known.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  picture.append(svg("path", { class: "line", d: path }));
  return picture;
}

/** At most `most` numbers, each the mean of its neighbours. */
function averaged(values, most) {
  const size = Math.ceil(values.length / most);
  const means = [];
  for (let at = 0; at < values.length; at += size) {
    const part = values.slice(at, at + size);
    means.push(part.reduce((sum, value) => sum + value, 0) / part.length);
  }
  return means;
}
