// Charts in the page's colours, each with a table of its data for people who cannot see it.
import { element } from "./elements.js";

const style = (colour) => {
  // light-dark() resolves only in a real property: let one compute it.
  const probe = element("span");
  probe.style.color = colour;
  document.body.append(probe);
  const computed = getComputedStyle(probe).color;
  probe.remove();
  return computed;
};
const translucent = (colour) => colour.replace("rgb(", "rgba(").replace(")", ", 0.18)");
// Colours of their own for a few series; more are shades from the first to the last, as layers have an order.
const colourOf = (at, all) => (all <= PALETTE.length ? style(`var(${PALETTE[at]})`) : style(`color-mix(in srgb, var(--heat) ${(100 * at) / (all - 1)}%, var(--accent))`));
const PALETTE = ["--accent", "--heat", "--good", "--bad", "--soft"];

// `series` are {label, points: [{x, y}]} or, with `categories`, {label, values}.
export function chartCard({ title, note, kind, categories, series, x = {}, y = {}, horizontal = false }) {
  const canvas = element("canvas", { role: "img", "aria-label": `${title}. ${note ?? ""} The figures follow as a table.` });
  const card = element("figure", { class: "card" });
  const table = element("details", {}, element("summary", {}, "Data table"));
  card.append(element("div", {}, element("h2", {}, title), element("p", { class: "soft" }, note ?? "")));
  card.append(element("div", { class: "chart" }, canvas), table);
  table.addEventListener("toggle", () => table.open && fill(table, { title, categories, series: chart.series, x }), { once: false });
  const chart = { series };
  requestAnimationFrame(() => {
    if (!canvas.isConnected) return;
    chart.drawn = new Chart(canvas, options({ kind, categories, series: chart.series, x, y, horizontal }));
  });
  card.update = (fresh) => {
    chart.series = fresh;
    if (!chart.drawn) return;
    chart.drawn.data.datasets = fresh.map((one, at) => dataset(one, at, fresh.length, kind));
    chart.drawn.update("none");
    if (table.open) fill(table, { title, categories, series: fresh, x });
  };
  return card;
}

function dataset({ label, points, values }, at, all, kind) {
  const colour = colourOf(at, all);
  return {
    label,
    data: points ?? values,
    borderColor: colour,
    backgroundColor: kind === "bar" ? colour : translucent(colour),
    borderWidth: kind === "bar" ? 0 : 2,
    borderRadius: kind === "bar" ? 2 : 0,
    categoryPercentage: 0.96,
    barPercentage: 0.94,
    maxBarThickness: 64,
    pointRadius: (points ?? []).length < 40 ? 2.5 : 0,
    pointHitRadius: 12,
    fill: kind === "area",
  };
}

// Around a single place the axis would span a twentieth of its value, which for times is years.
function center(axis) {
  const only = lonePlace(axis);
  if (only != null) [axis.min, axis.max] = [only - 1, only + 1];
}

function onlyTick(axis) {
  const only = lonePlace(axis);
  if (only != null) axis.ticks = [{ value: only }];
}

function lonePlace(axis) {
  const places = new Set(axis.chart.data.datasets.flatMap((one) => one.data.map((point) => point.x)));
  return places.size === 1 ? [...places][0] : null;
}

function options({ kind, categories, series, x, y, horizontal }) {
  const soft = style("var(--soft)");
  const line = style("var(--line)");
  const axis = (own, grid) => ({
    type: own.type ?? "linear",
    beginAtZero: own.zero ?? false,
    title: { display: Boolean(own.title), text: own.title, color: soft },
    ticks: { color: soft, maxRotation: 0, autoSkipPadding: 14, callback: own.tick },
    grid: { color: line, display: grid },
    border: { color: line },
    ...(own.lone ? { afterDataLimits: center, afterBuildTicks: onlyTick } : {}),
  });
  const across = categories ? { ...x, type: "category" } : { ...x, lone: true };
  const scales = horizontal ? { y: axis(across, false), x: axis(y, true) } : { x: axis(across, false), y: axis(y, true) };
  for (const own of Object.values(scales)) if (!own.ticks.callback) delete own.ticks.callback;
  return {
    type: kind === "bar" ? "bar" : "line",
    data: { labels: categories, datasets: series.map((one, at) => dataset(one, at, series.length, kind)) },
    options: {
      animation: false,
      parsing: undefined,
      responsive: true,
      maintainAspectRatio: false,
      indexAxis: horizontal ? "y" : "x",
      interaction: { mode: "nearest", axis: horizontal ? "y" : "x", intersect: false },
      scales,
      plugins: {
        legend: { display: series.length > 1, labels: { color: soft, boxWidth: 12, boxHeight: 2 } },
        tooltip: { callbacks: {
          title: (items) => (x.say ? x.say(items[0].parsed.x) : items[0].label),
          label: (item) => `${item.dataset.label}: ${(y.say ?? String)(horizontal ? item.parsed.x : item.parsed.y)}`,
        } },
      },
    },
  };
}

function fill(details, { title, categories, series, x }) {
  const xs = categories ?? [...new Set(series.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  const value = (one, at) => (categories ? one.values[at] : one.points.find((point) => point.x === xs[at])?.y);
  const head = element("tr", {}, element("th", { scope: "col" }, x.title || (categories ? "what" : "when")), ...series.map((one) => element("th", { scope: "col", class: "number" }, one.label)));
  const body = xs.map((at, row) => element("tr", {},
    element("th", { scope: "row" }, categories ? at : (x.say ?? String)(at)),
    ...series.map((one) => element("td", { class: "number" }, value(one, row) == null ? "" : Number(value(one, row)).toLocaleString("en", { maximumSignificantDigits: 5 })))));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  details.querySelector(".table")?.remove();
  details.append(element("div", { class: "table", tabindex: "0", role: "region", "aria-label": `Data table: ${title}` }, table));
}
