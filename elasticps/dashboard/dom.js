// Elements made and kept up to date. What comes from outside is text, and never markup.

const SVG = "http://www.w3.org/2000/svg";

export const el = (name, props, ...children) =>
  fill(document.createElement(name), props, children);

export const svg = (name, props, ...children) =>
  fill(document.createElementNS(SVG, name), props, children);

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) set(node, key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An attribute; false and null take it away. "on..." adds a listener. */
export function set(node, key, value) {
  if (key.startsWith("on")) {
    node.addEventListener(key.slice(2), value);
  } else if (value === false || value === null || value === undefined) {
    node.removeAttribute(key);
  } else {
    const text = value === true ? "" : String(value);
    if (node.getAttribute(key) !== text) node.setAttribute(key, text);
  }
}

/** Puts text or one element into a node, and touches nothing where it is there already. */
export function put(node, content) {
  if (content instanceof Node) {
    const same = node.childNodes.length === 1 && node.firstChild.isEqualNode(content);
    if (!same) node.replaceChildren(content);
  } else {
    const text = content === null || content === undefined ? "" : String(content);
    if (node.textContent !== text || node.firstElementChild) node.textContent = text;
  }
}

const kept = new WeakMap();

/** Has `parent` hold one child an item, in order; a child stays (and keeps the focus) with its key. */
export function keyed(parent, items, keyOf, make, update) {
  const before = kept.get(parent) ?? new Map();
  const now = new Map();
  const wanted = new Set(items.map(keyOf));
  for (const [key, node] of before) if (!wanted.has(key)) node.remove();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const node = before.get(key) ?? make(item);
    now.set(key, node);
    update(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  kept.set(parent, now);
}
