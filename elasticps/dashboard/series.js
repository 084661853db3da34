// A job's curves as they grow: asked for from the newest point on, thinned as they age.

import { get, path, query } from "./api.js";

const MOST_POINTS = 4000;

export class Series {
  constructor(job, key) {
    this.job = job;
    this.key = key; // of the job that has the name
    this.points = [];
    this.asking = false;
  }

  /** Whether there is anything new. Raises Refused, or TypeError where nobody answers. */
  async refresh() {
    if (this.asking) return false;
    this.asking = true;
    try {
      const since = this.points.at(-1)?.unix_s ?? 0;
      const { points } = await get(`jobs/${path(this.job)}/series?${query({ since })}`);
      const fresh = points.filter((point) => point.unix_s > since);
      this.points = thinned([...this.points, ...fresh]);
      return fresh.length > 0;
    } finally {
      this.asking = false;
    }
  }

  get metrics() {
    return [...new Set(this.points.slice(-50).flatMap((point) => Object.keys(point.metrics ?? {})))];
  }
}

function thinned(points) {
  if (points.length <= MOST_POINTS) return points;
  const half = points.length >> 1;
  return [...points.slice(0, half).filter((_, index) => index % 2 === 0), ...points.slice(half)];
}
