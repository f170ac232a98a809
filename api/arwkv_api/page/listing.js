// A table that the service sorts and pages: headings are buttons, and a button loads more rows.
import { element, show } from "./elements.js";
import { ask } from "./service.js";

// `columns` are {name, key?, number?, wide?, cell: (item) => Node | string}; `query()` gives the filters.
export function listing({ label, path, columns, query, sort, signal, empty, limit = matchMedia("(max-width: 40rem)").matches ? 8 : 25 }) {
  const body = element("tbody");
  const more = element("button", { type: "button", hidden: true, onclick: () => load(next) }, "More");
  const status = element("p", { class: "soft", role: "status" });
  let order = sort;
  let next = null;
  let asked = 0;

  const headings = columns.map((column) => {
    const cell = element("th", { scope: "col", class: column.number ? "number" : null }, column.key ? null : column.name);
    if (column.key) cell.append(element("button", { type: "button", onclick: () => reorder(column.key) }, column.name));
    return cell;
  });

  function reorder(key) {
    order = order === key ? `-${key}` : order === `-${key}` ? key : columns.find((c) => c.key === key).number ? `-${key}` : key;
    load(null);
  }

  function mark() {
    columns.forEach((column, at) => {
      const mine = column.key && order.replace("-", "") === column.key;
      if (mine) headings[at].setAttribute("aria-sort", order.startsWith("-") ? "descending" : "ascending");
      else headings[at].removeAttribute("aria-sort");
      if (column.key) headings[at].firstChild.textContent = column.name + (mine ? (order.startsWith("-") ? " ↓" : " ↑") : "");
    });
  }

  async function load(cursor) {
    const turn = ++asked;
    mark();
    const parameters = new URLSearchParams({ limit, sort: order, ...query(), ...(cursor ? { cursor } : {}) });
    try {
      const page = await ask(`${path}?${parameters}`, signal);
      if (turn !== asked) return;
      const rows = page.items.map((item) => element("tr", {}, ...columns.map((column) => element("td", {
        class: [column.number ? "number" : "", column.wide ? "wide" : ""].join(" ").trim() || null,
        "data-name": column.label ?? column.name,
      }, column.cell(item)))));
      if (cursor) body.append(...rows);
      else show(body, ...rows);
      next = page.next_cursor;
      more.hidden = next == null;
      status.textContent = body.children.length ? (next ? `The first ${body.children.length}` : `All ${body.children.length}`) : empty;
    } catch (error) {
      if (!signal.aborted) status.textContent = error.message;
    }
  }

  const table = element("table", { class: "stack", "aria-label": label },
    element("thead", {}, element("tr", {}, ...headings)), body);
  const whole = element("div", { class: "listing" }, element("div", { class: "table" }, table),
    element("div", { class: "controls" }, status, more));
  whole.reload = () => load(null);
  load(null);
  return whole;
}
