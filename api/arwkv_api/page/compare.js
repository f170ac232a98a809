// Runs side by side: the settings in which they differ, and each figure's curves in one chart.
import { drawCurves } from "./curves.js";
import { element, show } from "./elements.js";
import { runLines, settingsOf } from "./runs.js";
import { ask, enc } from "./service.js";
import { workBadge } from "./states.js";

export async function compareView(place, signal, names) {
  document.title = "Compare runs – ARWKV runs";
  const runs = await Promise.all(names.split("/").map(async (encoded) => {
    const name = decodeURIComponent(encoded);
    const [detail, lines] = await Promise.all([ask(`v1/runs/${enc(name)}`, signal), runLines(name, signal)]);
    return { name, detail, lines };
  }));
  const grid = element("section", { class: "charts", "aria-label": "Curves" });
  show(place,
    element("p", { class: "crumbs" }, element("a", { href: "#/runs" }, "Runs"), " /"),
    element("h1", {}, "Compare runs"),
    differences(runs),
    grid);
  drawCurves(runs.flatMap(({ name, lines }) => stages(lines).map((stage) => ({
    label: stage ? `${name}, ${stage}` : name, lines: lines.filter((line) => (line.stage ?? "") === stage),
  }))), new Map(), grid, { layers: false });
}

const stages = (lines) => [...new Set(lines.map((line) => line.stage ?? ""))];

function differences(runs) {
  const settings = runs.map(({ detail }) => new Map(settingsOf(detail.settings ?? {})));
  const names = [...new Set(settings.flatMap((one) => [...one.keys()]))];
  const differing = names.filter((name) => new Set(settings.map((one) => one.get(name))).size > 1);
  const row = (name, cells) => element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));
  return element("section", { class: "card" }, element("h2", {}, "Settings that differ"), element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Settings that differ" },
    element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Setting"), ...runs.map(({ name }) => element("th", { scope: "col" }, element("a", { href: `#/runs/${enc(name)}` }, name))))),
      element("tbody", {}, row("State", runs.map(({ detail }) => workBadge(detail.state))), ...differing.map((name) => row(name, settings.map((one) => one.get(name) ?? "–")))))));
}
