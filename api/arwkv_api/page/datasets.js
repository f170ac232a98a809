// All datasets at a glance.
import { badge, bytes, count, element, short, show, tiles, when } from "./elements.js";
import { listing } from "./listing.js";
import { tagChoice, tagList } from "./notes.js";
import { ask, enc } from "./service.js";

// Maximum number of datasets in one answer, and in the sums at the top.
const SUMMED = 1000;

export async function datasetsView(place, signal) {
  document.title = "ARWKV datasets";
  const first = await ask(`v1/datasets?limit=${SUMMED}`, signal);
  if (!first.items.length) {
    show(place, element("h1", {}, "Datasets"), element("div", { class: "card empty" },
      element("p", {}, "There is no dataset yet. A dataset appears here within seconds after its first commit:"),
      element("p", {}, element("code", {}, "producer generate --teacher … --data … --out ROOT/NAME"))));
    return;
  }
  const sum = (key) => first.items.reduce((total, item) => total + item[key], 0);
  const search = element("input", { id: "search", type: "search", autocomplete: "off", placeholder: "name, teacher, notes" });
  const tag = tagChoice(() => table.reload());
  const table = listing({
    label: "Datasets",
    path: "v1/datasets",
    sort: "name",
    signal,
    empty: "No dataset found.",
    query: () => ({ ...(search.value ? { search: search.value } : {}), ...(tag.value ? { tag: tag.value } : {}) }),
    columns: [
      { name: "Name", key: "name", wide: true, cell: (d) => element("div", { class: "named" }, element("a", { href: `#/datasets/${enc(d.name)}` }, d.name), tagList(d.tags, tag.choose)) },
      { name: "State", cell: (d) => (d.faulty_shards && d.state === "ready" ? badge("missing", `${count(d.faulty_shards)} faulty`) : badge(d.state)) },
      { name: "Teacher", key: "teacher", cell: (d) => d.teacher.split("/").at(-1) },
      { name: "Shards", cell: (d) => progress(d) },
      { name: "Samples", key: "samples", number: true, cell: (d) => count(d.samples) },
      { name: "Tokens", key: "tokens", number: true, cell: (d) => short(d.tokens) },
      { name: "Size", key: "size_bytes", number: true, cell: (d) => bytes(d.size_bytes) },
      { name: "Changed", key: "updated_at", number: true, cell: (d) => when(d.updated_at) },
    ],
  });
  search.addEventListener("input", table.reload);
  show(place,
    element("h1", {}, "Datasets"),
    tiles([
      ["Datasets", count(first.items.length) + (first.next_cursor ? "+" : "")],
      ["Tokens", short(sum("tokens"))],
      ["Size", bytes(sum("size_bytes"))],
      ["Shards", count(sum("shards")), sum("faulty_shards") ? `${count(sum("faulty_shards"))} faulty` : "none faulty"],
    ]),
    first.next_cursor ? element("p", { class: "soft" }, `The sums count the first ${count(first.items.length)} datasets by name. /metrics counts all.`) : null,
    element("div", { class: "card" }, element("div", { class: "controls" }, element("label", { for: "search" }, "Search", search), tag.place), table));
}

function progress(d) {
  const bar = element("progress", { max: Math.max(d.parts, 1), value: d.shards, "aria-label": `${d.shards} of ${d.parts} shards of ${d.name}` });
  return element("div", {}, `${count(d.shards)} / ${count(d.parts)}`, bar);
}
