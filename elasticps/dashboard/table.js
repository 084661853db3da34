// A table that is sorted by its headings, narrowed by words, and paged: a thousand rows stay quick.

import { el, keyed, put, set } from "./dom.js";
import { number } from "./format.js";

const PAGE_ROWS = 50;

/**
 * `columns`: {title, cell(item) -> text or element, sort?(item) -> value, numeric?}. The first one
 * heads its row. `words(item)` is what the filter looks in; without it there is no filter.
 */
export class Table {
  constructor({ caption, columns, key, words, mark, empty = "none", rows = PAGE_ROWS }) {
    Object.assign(this, { columns, key, words, mark, empty, rows });
    this.items = [];
    this.page = 0;
    this.order = { column: null, down: false };
    this.body = el("tbody");
    this.heads = columns.map((column, index) => this.heading(column, index));
    this.filter = words && el("input", {
      type: "search",
      "aria-label": `Filter: ${caption}`,
      placeholder: "Filter",
      oninput: () => this.turn(0),
    });
    this.counted = el("span", { class: "muted" });
    this.back = el("button", { type: "button", onclick: () => this.turn(this.page - 1) }, "Previous");
    this.next = el("button", { type: "button", onclick: () => this.turn(this.page + 1) }, "Next");
    this.pager = el("div", { class: "pager" }, this.filter, this.counted, el("span", { class: "spring" }), this.back, this.next);
    this.node = el(
      "div",
      { class: "table" },
      this.pager,
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "group", "aria-label": `${caption}, table` },
        el("table", {}, el("caption", { class: "sr" }, caption), el("thead", {}, el("tr", {}, ...this.heads)), this.body),
      ),
    );
  }

  heading(column, index) {
    const props = { scope: "col", class: column.numeric ? "numeric" : null };
    if (!column.sort) return el("th", props, column.title);
    return el("th", props, el("button", { type: "button", class: "sort", onclick: () => this.sortBy(index) }, column.title));
  }

  sortBy(index) {
    const again = this.order.column === index;
    const numeric = Boolean(this.columns[index].numeric);
    this.order = { column: index, down: again ? !this.order.down : numeric };
    this.heads.forEach((head, each) =>
      set(head, "aria-sort", each === index ? (this.order.down ? "descending" : "ascending") : null));
    this.turn(0);
  }

  update(items) {
    this.items = items;
    this.show();
  }

  turn(page) {
    this.page = page;
    this.show();
  }

  show() {
    const rows = this.chosen();
    const pages = Math.max(1, Math.ceil(rows.length / this.rows));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const first = this.page * this.rows;
    const shown = rows.slice(first, first + this.rows);
    keyed(
      this.body,
      shown.length ? shown : [null],
      (item) => (item ? this.key(item) : ""),
      (item) => this.row(item),
      (node, item) => item && this.fill(node, item),
    );
    put(this.counted, this.told(rows.length, first, shown.length));
    for (const button of [this.back, this.next]) button.hidden = pages === 1;
    this.back.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
    this.pager.hidden = pages === 1 && (!this.filter || this.items.length < 8);
  }

  told(found, first, shown) {
    if (found > this.rows) return `${number(first + 1)} to ${number(first + shown)} of ${number(found)}`;
    return found === this.items.length ? "" : `${number(found)} of ${number(this.items.length)}`;
  }

  chosen() {
    const words = (this.filter?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const rows = words.length
      ? this.items.filter((item) => words.every((word) => this.words(item).toLowerCase().includes(word)))
      : [...this.items];
    if (this.order.column === null) return rows;
    const { sort } = this.columns[this.order.column];
    const sign = this.order.down ? -1 : 1;
    return rows.sort((one, other) => {
      const [a, b] = [sort(one), sort(other)];
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : (a ?? -1) - (b ?? -1));
    });
  }

  row(item) {
    if (!item) return el("tr", {}, el("td", { colspan: this.columns.length, class: "muted" }, this.empty));
    return el("tr", {}, ...this.columns.map((column, index) =>
      el(index ? "td" : "th", { scope: index ? null : "row", class: column.numeric ? "numeric" : null })));
  }

  fill(node, item) {
    set(node, "data-mark", this.mark?.(item) || null);
    this.columns.forEach((column, index) => put(node.children[index], column.cell(item)));
  }
}
