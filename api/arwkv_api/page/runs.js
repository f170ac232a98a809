// Training runs: a list, and one run: its settings, its curves while it goes, teacher and student given the same prompts.
import { drawCurves } from "./curves.js";
import { bytes, count, duration, element, facts, figure, short, show, tiles, when } from "./elements.js";
import { notesCard, tagChoice, tagList } from "./notes.js";
import { address, ask, enc, follow } from "./service.js";
import { chain, connection, progressOf, workBadge } from "./states.js";

const SAMPLES = 8;
// Lines of a compared run that are read at most: 10,000 in an answer.
const MOST_ANSWERS = 20;
// Settings shown first, by their names in run.json.
const FIRST = ["base.name", "preset", "init", "stage", "samples_per_step", "align_lr", "distill_lr", "learning_rate", "seed"];

export async function runsView(place, signal) {
  document.title = "Runs – ARWKV datasets";
  const { items } = await ask("v1/runs", signal);
  if (!items.length) {
    show(place, element("h1", {}, "Runs"), element("div", { class: "card empty" },
      element("p", {}, "There is no run yet. A run appears here when it writes its first metrics:"),
      element("p", {}, element("code", {}, `student train --shards ${address("v1/datasets/NAME")} --out RUN`))));
    return;
  }
  const chosen = new Set();
  const compare = element("a", { class: "button", hidden: true }, "Compare");
  const choose = (name, on) => {
    if (on) chosen.add(name);
    else chosen.delete(name);
    compare.hidden = chosen.size < 2;
    compare.href = `#/compare/${[...chosen].map(enc).join("/")}`;
    compare.textContent = `Compare ${count(chosen.size)} runs`;
  };
  const card = element("div", { class: "card" });
  const draw = (runs) => show(card, element("p", { class: "controls" }, element("span", { class: "soft" }, "Choose two runs or more to compare them."), compare), runs.length ? runTable(runs, { chosen, choose, only: tag.choose }) : element("p", { class: "soft" }, "No run found."));
  const search = element("input", { id: "search", type: "search", autocomplete: "off", placeholder: "name, base, notes" });
  const tag = tagChoice(() => load());
  let asked = 0;
  const load = async () => {
    const turn = ++asked;
    const only = new URLSearchParams({ ...(search.value ? { search: search.value } : {}), ...(tag.value ? { tag: tag.value } : {}) });
    const found = await ask(`v1/runs?${only}`, signal).catch((error) => ({ error }));
    if (turn !== asked || signal.aborted) return;
    if (found.error) show(card, element("p", { class: "notice", role: "status" }, found.error.message));
    else draw(found.items);
  };
  search.addEventListener("input", load);
  draw(items);
  show(place, element("h1", {}, "Runs"), element("div", { class: "controls" }, element("label", { for: "search" }, "Search", search), tag.place), card);
  follow(["runs"], signal, load, () => {});
}

// A table of runs; with `choice`, each has a box to choose it.
export function runTable(runs, choice) {
  const cells = (run) => [
    choice ? ["Compare", element("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, checked: choice.chosen.has(run.name), onchange: (event) => choice.choose(run.name, event.target.checked) })] : null,
    ["Name", element("div", { class: "named" }, element("a", { href: `#/runs/${enc(run.name)}` }, run.name), tagList(run.tags, choice?.only)), "wide"],
    ["State", workBadge(run.state)],
    ["Stage", run.stage || "–"],
    ["Steps", progressOf(run, `steps of ${run.name}`)],
    ["Time left", run.left_s == null || run.state !== "running" ? "–" : duration(run.left_s), "number"],
    ["Size", bytes(run.size_bytes), "number"],
    ["Updated", when(run.updated_at), "number"],
  ].filter(Boolean);
  const head = cells(runs[0]).map(([name, , kind]) => element("th", { scope: "col", class: kind === "number" ? kind : null }, name));
  const rows = runs.map((run) => element("tr", {}, ...cells(run).map(([name, value, kind]) => element("td", { class: kind ?? null, "data-name": name }, value))));
  return element("div", { class: "table" }, element("table", { class: "stack", "aria-label": "Runs" },
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
}

export async function runView(place, signal, name) {
  document.title = `${name} – ARWKV runs`;
  const path = `v1/runs/${enc(name)}`;
  const summary = element("div");
  const state = element("span");
  const live = element("span", { role: "status" });
  const about = element("section", { class: "card", "aria-label": "Settings" });
  const grid = element("section", { class: "charts", "aria-label": "Curves" });
  const pairs = element("section", { class: "pairs", "aria-label": "Samples" });
  const notes = await notesCard(path, signal);
  const cards = new Map();
  let shown = "";
  let lines = [];
  let cursor = null;
  show(place,
    element("p", { class: "crumbs" }, element("a", { href: "#/runs" }, "Runs"), " /"),
    element("div", { class: "heading" }, element("h1", {}, name), state, live), summary, notes, about, grid, pairs);
  const compare = async () => {
    const { items } = await ask(`${path}/samples?limit=${SAMPLES}`, signal);
    if (JSON.stringify(items) === shown) return;
    shown = JSON.stringify(items);
    show(pairs, ...(items.length ? [element("h2", {}, "Teacher and student, given the same prompts"), ...items.map(pair)] : []));
  };
  const look = async () => {
    const [detail, fresh] = await Promise.all([ask(path, signal), ask(`${path}/metrics${cursor ? `?cursor=${cursor}` : ""}`, signal)]);
    if (fresh.restarted) lines = [];
    const first = cursor == null;
    cursor = fresh.next_cursor;
    lines = lines.concat(fresh.items);
    show(state, workBadge(detail.state));
    show(summary, latest(lines, detail));
    if (first || fresh.items.length) await compare();
    if (first) show(about, element("h2", {}, "Lineage"), origin(name, detail), ...settings(detail));
    if (!first && !fresh.items.length && !fresh.restarted) return;
    const stages = [...new Set(lines.map((line) => line.stage ?? ""))];
    drawCurves(stages.map((stage) => ({ label: stage, lines: lines.filter((line) => (line.stage ?? "") === stage) })), cards, grid);
  };
  await look();
  follow(["runs"], signal, () => Promise.all([look(), notes.refresh()]), (error) => connection(live, error));
}

// Every line of a run's figures.
export async function runLines(name, signal) {
  let lines = [];
  let cursor = null;
  for (let answers = 0; answers < MOST_ANSWERS; answers += 1) {
    const page = await ask(`v1/runs/${enc(name)}/metrics${cursor ? `?cursor=${cursor}` : ""}`, signal);
    lines = lines.concat(page.items);
    cursor = page.next_cursor;
    if (!page.items.length) break;
  }
  return lines;
}

// Name and text of each setting in run.json, without those that are not set; nested ones as `outer.inner`.
export function settingsOf(document, prefix = "") {
  return Object.entries(document).flatMap(([name, value]) => {
    if (value == null || value === "") return [];
    if (typeof value === "object" && !Array.isArray(value)) return settingsOf(value, `${prefix}${name}.`);
    return [[prefix + name, Array.isArray(value) ? value.map((one) => (typeof one === "object" ? JSON.stringify(one) : one)).join(", ") : String(value)]];
  });
}

// What the run came from: the student that it started from, if any, its base, and the datasets that it reads.
function origin(name, { settings: document, datasets }) {
  const start = document?.start;
  const sources = Object.entries(document ?? {}).filter(([key]) => /^shards_\d+_teacher$/.test(key)).map(([, teacher]) => teacher?.model).filter(Boolean);
  return chain([
    sources.length ? ["Teacher", [...new Set(sources)]] : null,
    datasets.length ? ["Datasets", datasets.map((one) => element("a", { href: `#/datasets/${enc(one)}` }, one))] : null,
    start ? ["Started from", [[start.run?.preset, String(start.checkpoint ?? "").slice(0, 12)].filter(Boolean).join(" ")]] : null,
    ["Run", [element("strong", {}, name)]],
  ].filter(Boolean));
}

function settings({ settings: document, stages }) {
  if (!document) return [element("h2", {}, "Settings"), element("p", { class: "soft" }, "This run has no run.json.")];
  const all = settingsOf(document);
  const leads = ([name]) => FIRST.includes(name);
  const done = Object.entries(stages).map(([stage, found]) => [`Stage ${stage}`, settingsOf(found).map(([name, value]) => `${name} ${value}`).join(", ")]);
  return [element("h2", {}, "Settings"), facts([...all.filter(leads), ...done]),
    element("details", {}, element("summary", {}, "All of run.json"), facts(all.filter((one) => !leads(one))))];
}

function pair({ prompt, teacher, student, stage, step }) {
  const when = [stage, step == null ? null : `step ${count(step)}`].filter(Boolean).join(", ");
  const half = (who, text) => element("div", {}, element("h3", {}, who),
    element("p", { class: "text" }, element("span", { class: "prompt" }, prompt), text));
  return element("article", { class: "card" }, when ? element("p", { class: "soft" }, when) : null,
    element("div", { class: "pair" }, half("Teacher", teacher), half("Student", student)));
}

function latest(lines, { heartbeat, state }) {
  const last = (key) => lines.findLast((line) => line[key] != null)?.[key];
  return tiles([
    ["Stage", last("stage") ?? "–"],
    ["Step", last("step") == null ? "–" : count(last("step")), heartbeat?.total ? `of ${count(heartbeat.total)}` : null],
    ["Tokens", last("tokens") == null ? "–" : short(last("tokens"))],
    ["Loss", figure(last("loss"), 4)],
    ["KL, held-out", figure(last("eval_kl"), 4)],
    ["Speed", last("tokens_per_s") == null ? "–" : `${short(last("tokens_per_s"))}/s`],
    state === "running" && heartbeat.left_s != null ? ["Time left", duration(heartbeat.left_s), "of this stage"] : null,
    heartbeat?.message ? ["Error", String(heartbeat.errors), heartbeat.message] : null,
  ].filter(Boolean));
}

