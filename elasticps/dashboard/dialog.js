// Questions that hold everything else up: are you sure; which token.

import { el } from "./dom.js";

/** Resolves with the options that are ticked, or with null where the reader thinks better of it. */
export function confirm({ title, text, action, options = [] }) {
  const boxes = options.map((option) => ({ ...option, box: el("input", { type: "checkbox" }) }));
  const keep = el("button", { type: "button", autofocus: true }, "No, go back");
  const go = el("button", { type: "button", class: "danger" }, action);
  const dialog = el(
    "dialog",
    { "aria-labelledby": "dialog-title" },
    el("h2", { id: "dialog-title" }, title),
    el("p", {}, text),
    ...boxes.map(({ label, box }) => el("p", {}, el("label", {}, box, ` ${label}`))),
    el("p", { class: "actions" }, keep, go),
  );
  return shown(dialog, (end) => {
    keep.addEventListener("click", () => end(null));
    go.addEventListener("click", () =>
      end(Object.fromEntries(boxes.map(({ name, box }) => [name, box.checked]))));
  });
}

/** Resolves with the token that the reader gives, or with null. */
export function askToken(why) {
  const input = el("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true,
  });
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id: "dialog-title" }, "A token, please"),
    el("p", {}, why),
    el("p", {}, el("label", { for: "token" }, "Token"), input),
    el("p", { class: "hint" }, "It stays in this tab. ", el("code", {}, "elasticps token create NAME --role read"), " makes one."),
    el("p", { class: "actions" }, el("button", { type: "submit" }, "Show the cluster")),
  );
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
  return shown(dialog, (end) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(input.value.trim() || null);
    });
  });
}

function shown(dialog, wire) {
  return new Promise((resolve) => {
    let answer = null;
    wire((value) => {
      answer = value;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
