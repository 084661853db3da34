// Where the reader is: #/, #/node/NAME or #/job/NAME.

export function here() {
  const [, kind = "", name = ""] = location.hash.split("/");
  try {
    return { kind, name: decodeURIComponent(name) };
  } catch {
    return { kind: "nowhere", name: "" };
  }
}

export const toNode = (name) => `#/node/${encodeURIComponent(name)}`;
export const toJob = (name) => `#/job/${encodeURIComponent(name)}`;
