// What processes at work say of themselves: their state, how far they are, and the tables of captures.
import { badge, count, duration, element, short, when } from "./elements.js";
import { enc } from "./service.js";

const WORDS = { running: "running", finished: "ended", stopped: "stopped", failed: "failed" };
const TONE = { running: "committed", finished: "", stopped: "missing", failed: "corrupt" };

export const workBadge = (state) => badge(TONE[state] ?? "", WORDS[state] ?? "no heartbeat");

// Says that the page no longer follows the service.
export function connection(status, error) {
  status.textContent = error ? "no connection" : "";
  status.className = error ? "badge warn" : "";
}

// A table of processes that make datasets; null if there is none. `named` adds the dataset's name.
export function captureTable(items, named = true) {
  if (!items.length) return null;
  const cells = ({ dataset, state, heartbeat: beat }) => [
    named ? ["Dataset", element("a", { href: `#/datasets/${enc(dataset)}` }, dataset), "wide"] : null,
    ["Process", `${beat.process + 1} of ${beat.processes}${beat.host ? ` on ${beat.host}` : ""}`],
    ["State", workBadge(state)],
    ["Shards", progressOf(beat, `shards of ${dataset}`)],
    ["Speed", beat.tokens_per_s == null ? "–" : `${short(beat.tokens_per_s)} tokens/s`, "number"],
    ["Time left", beat.left_s == null || state !== "running" ? "–" : duration(beat.left_s), "number"],
    ["Errors", beat.errors ? element("div", { class: "problem" }, count(beat.errors), element("small", {}, beat.message)) : "none"],
    ["Said", when(new Date(1000 * beat.at_s).toISOString()), "number"],
  ].filter(Boolean);
  const head = cells(items[0]).map(([name, , kind]) => element("th", { scope: "col", class: kind === "number" ? kind : null }, name));
  const rows = items.map((item) => element("tr", {}, ...cells(item).map(([name, value, kind]) => element("td", { class: kind ?? null, "data-name": name }, value))));
  return element("div", { class: "table" }, element("table", { class: "stack", "aria-label": "Captures" },
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
}

// What is done of a process's work, with a bar if the whole is known.
export function progressOf({ done, total }, what) {
  if (done == null) return "–";
  if (!total) return count(done);
  return element("div", {}, `${count(done)} / ${count(total)}`, element("progress", { max: total, value: done, "aria-label": `${count(done)} of ${count(total)} ${what}` }));
}

// A small graph from left to right: [kind, what there is of it] for each step.
export function chain(steps) {
  return element("ol", { class: "chain" }, ...steps.map(([kind, entries]) => element("li", {}, element("span", { class: "soft" }, kind),
    ...entries.map((entry) => element("span", {}, entry)))));
}
