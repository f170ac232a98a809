// Training runs: a list, the live curves of one run, and the answers of teacher and student to the same prompts.
import { chartCard } from "./charts.js";
import { bytes, count, element, figure, short, show, tick, tiles, when } from "./elements.js";
import { address, ask, enc, repeat } from "./service.js";

const EVERY_MS = 2000;
const SAMPLES = 8;
// The figures with a chart, in this order; the last line of a run shows all others.
const CURVES = [
  ["loss", "Training loss"],
  ["eval_kl", "KL to the teacher, held-out"],
  ["eval_perplexity_ratio", "Perplexity, student over teacher"],
  ["eval_top1_agreement", "Top-1 agreement, held-out"],
  ["tokens_per_s", "Tokens per second"],
  ["lr", "Learning rate"],
  ["grad_norm", "Gradient norm"],
];

export async function runsView(place, signal) {
  document.title = "Runs – ARWKV datasets";
  const { items } = await ask("v1/runs", signal);
  if (!items.length) {
    show(place, element("h1", {}, "Runs"), element("div", { class: "card empty" },
      element("p", {}, "There is no run yet. A run appears here when it writes its first metrics:"),
      element("p", {}, element("code", {}, `student train --shards ${address("v1/datasets/NAME")} --out RUN`))));
    return;
  }
  const rows = items.map((run) => element("tr", {},
    element("td", { class: "wide", "data-name": "Name" }, element("a", { href: `#/runs/${enc(run.name)}` }, run.name)),
    element("td", { class: "number", "data-name": "Size" }, bytes(run.size_bytes)),
    element("td", { class: "number", "data-name": "Updated" }, when(run.updated_at))));
  const head = ["Name", "Size", "Updated"].map((name, at) => element("th", { scope: "col", class: at ? "number" : null }, name));
  show(place, element("h1", {}, "Runs"), element("div", { class: "card" }, element("div", { class: "table" },
    element("table", { class: "stack", "aria-label": "Runs" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)))));
}

export async function runView(place, signal, name) {
  document.title = `${name} – ARWKV runs`;
  const summary = element("div");
  const live = element("span", { class: "badge", role: "status" }, "live");
  const grid = element("section", { class: "charts", "aria-label": "Curves" });
  const pairs = element("section", { class: "pairs", "aria-label": "Samples" });
  const cards = new Map();
  let shown = "";
  let lines = [];
  let cursor = null;
  show(place,
    element("p", { class: "crumbs" }, element("a", { href: "#/runs" }, "Runs"), " /"),
    element("div", { class: "heading" }, element("h1", {}, name), live), summary, grid, pairs);
  const compare = async () => {
    const { items } = await ask(`v1/runs/${enc(name)}/samples?limit=${SAMPLES}`, signal);
    if (JSON.stringify(items) === shown) return;
    shown = JSON.stringify(items);
    show(pairs, ...(items.length ? [element("h2", {}, "Teacher and student, given the same prompts"), ...items.map(pair)] : []));
  };
  const look = async () => {
    const fresh = await ask(`v1/runs/${enc(name)}/metrics${cursor ? `?cursor=${cursor}` : ""}`, signal);
    if (fresh.restarted) lines = [];
    const first = cursor == null;
    cursor = fresh.next_cursor;
    if (first || fresh.items.length) await compare();
    if (!first && !fresh.items.length && !fresh.restarted) return;
    lines = lines.concat(fresh.items);
    draw(lines, cards, grid);
    show(summary, latest(lines));
  };
  await look();
  repeat(EVERY_MS, signal, look, (error) => {
    live.textContent = error ? "no connection" : "live";
    live.className = error ? "badge warn" : "badge";
  });
}

function pair({ prompt, teacher, student, stage, step }) {
  const when = [stage, step == null ? null : `step ${count(step)}`].filter(Boolean).join(", ");
  const half = (who, text) => element("div", {}, element("h3", {}, who),
    element("p", { class: "text" }, element("span", { class: "prompt" }, prompt), text));
  return element("article", { class: "card" }, when ? element("p", { class: "soft" }, when) : null,
    element("div", { class: "pair" }, half("Teacher", teacher), half("Student", student)));
}

function latest(lines) {
  const last = (key) => lines.findLast((line) => line[key] != null)?.[key];
  return tiles([
    ["Stage", last("stage") ?? "–"],
    ["Step", last("step") == null ? "–" : count(last("step"))],
    ["Tokens", last("tokens") == null ? "–" : short(last("tokens"))],
    ["Loss", figure(last("loss"), 4)],
    ["KL, held-out", figure(last("eval_kl"), 4)],
    ["Speed", last("tokens_per_s") == null ? "–" : `${short(last("tokens_per_s"))}/s`],
  ]);
}

function draw(lines, cards, grid) {
  const stages = [...new Set(lines.map((line) => line.stage ?? ""))];
  for (const [key, title] of CURVES) {
    const series = stages.map((stage) => ({
      label: stage || key,
      points: lines.filter((line) => (line.stage ?? "") === stage && Number.isFinite(line[key])).map((line) => ({ x: line.step, y: line[key] })),
    })).filter((one) => one.points.length);
    if (!series.length) continue;
    if (cards.has(key)) cards.get(key).update(series);
    else {
      const card = chartCard({ title, note: stages.length > 1 ? "By step within each stage." : "By step.", kind: "line", series,
        x: { title: "step", tick: short, say: (step) => `step ${count(step)}` }, y: { tick, say: (v) => figure(v, 4) } });
      cards.set(key, card);
      grid.append(card);
    }
  }
}
