// Server-sent events read by fetch, which can show a token where EventSource cannot.

import { ask, lines } from "./api.js";

const QUICKEST_MS = 500;
const SLOWEST_MS = 10_000;
const SILENT_MS = 40_000; // the daemon says something every 15 s

/** Calls `onMessage({event, data, id})` for ever; comes back after breaks where it was. */
export class Stream {
  constructor(path, { onMessage, onState }) {
    this.path = path;
    this.onMessage = onMessage;
    this.onState = onState;
    this.last = null;
    this.retry = QUICKEST_MS;
    this.stopping = new AbortController();
  }

  stop() {
    this.stopping.abort();
  }

  async run() {
    const { signal } = this.stopping;
    let wait = this.retry;
    while (!signal.aborted) {
      try {
        await this.read(() => (wait = this.retry));
        this.onState("lost", "the daemon ended the stream");
      } catch (error) {
        if (signal.aborted) return;
        this.onState(error.status === 401 ? "token" : "lost", error.message);
        if (error.status === 401) return;
      }
      await new Promise((resume) => setTimeout(resume, wait * (0.75 + Math.random() / 2)));
      wait = Math.min(wait * 2, SLOWEST_MS);
    }
  }

  async read(opened) {
    const attempt = new AbortController();
    const giveUp = () => attempt.abort();
    this.stopping.signal.addEventListener("abort", giveUp);
    let silence = setTimeout(giveUp, SILENT_MS);
    try {
      const headers = this.last === null ? {} : { "Last-Event-ID": this.last };
      const response = await ask(this.path, { headers, signal: attempt.signal });
      opened();
      let message = {};
      for await (const line of lines(response)) {
        clearTimeout(silence);
        silence = setTimeout(giveUp, SILENT_MS);
        message = this.take(message, line);
      }
    } finally {
      clearTimeout(silence);
      this.stopping.signal.removeEventListener("abort", giveUp);
    }
  }

  take(message, line) {
    if (line === "" || line === "\r") {
      if (message.data !== undefined) this.tell(message);
      return {};
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "").replace(/\r$/, "");
    if (field === "data" && message.data !== undefined) message.data += `\n${value}`;
    else if (field === "retry") this.retry = Number(value) || this.retry;
    else if (field) message[field] = value;
    return message;
  }

  tell(message) {
    if (message.id) this.last = message.id;
    this.onState("live");
    this.onMessage({ event: message.event, id: message.id, data: JSON.parse(message.data) });
  }
}
