// Numbers, sizes and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const NONE = "–";

const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

export function bytes(value) {
  if (!known(value)) return NONE;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && Math.abs(value) < 100 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** Four digits that say something. */
export function number(value) {
  if (!known(value)) return NONE;
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

export const rate = (value) => (known(value) ? `${number(Number(value.toPrecision(3)))}/s` : NONE);

export const byteRate = (value) => (known(value) ? `${bytes(value)}/s` : NONE);

export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(hours / 24)} days`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const clock = (unixS) => CLOCK.format(new Date(unixS * 1000));
export const day = (unixS) => (known(unixS) ? DAY.format(new Date(unixS * 1000)) : NONE);
export const iso = (unixS) => new Date(unixS * 1000).toISOString();
