// Requests to the daemon that served this page, with the reader's token. No cookies, nobody else.

const KEY = "elasticps-token";
const BASE = new URL("./", location.href.split("#")[0]);

export class Refused extends Error {
  constructor(status, error) {
    super([error.what, error.limit && `(${error.limit})`].filter(Boolean).join(" "));
    this.status = status;
  }
}

/** A response whose body is still to be read. Raises Refused, or TypeError where nobody answers. */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const token = sessionStorage.getItem(KEY);
  const type = body === undefined ? {} : { "Content-Type": "application/json" };
  const proof = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(new URL(`api/v1/${path}`, BASE), {
    method,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: { ...headers, ...type, ...proof },
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  });
  if (!response.ok) throw new Refused(response.status, await errorOf(response));
  return response;
}

export const get = async (path, options) => (await ask(path, options)).json();

export const path = (...parts) => parts.map(encodeURIComponent).join("/");

export const query = (options) => new URLSearchParams(options).toString();

export const keepToken = (token) => sessionStorage.setItem(KEY, token);

async function errorOf(response) {
  try {
    return (await response.json()).error ?? { what: `the daemon answers ${response.status}` };
  } catch {
    return { what: `the daemon answers ${response.status}` };
  }
}

/** The lines of a response as they come; ends with it. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}
