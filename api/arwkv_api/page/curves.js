// The curves of runs: one chart for each figure, one series for each run and stage.
import { chartCard } from "./charts.js";
import { count, figure, short, tick } from "./elements.js";

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
const OF_LAYER = /^relative_error_(\d+)$/;

// `parts` are {label, lines}; `cards` keeps the charts that are in `grid` already.
export function drawCurves(parts, cards, grid, { layers = true } = {}) {
  const note = parts.length > 1 ? "By step within each stage." : "By step.";
  const put = (key, title, note, series) => {
    if (!series.length) return;
    if (cards.has(key)) return cards.get(key).update(series);
    const card = chartCard({ title, note, kind: "line", series,
      x: { title: "step", tick: short, say: (step) => `step ${count(step)}` }, y: { tick, say: (v) => figure(v, 4) } });
    cards.set(key, card);
    grid.append(card);
  };
  for (const [key, title] of CURVES) put(key, title, note, parts.map(({ label, lines }) => ({ label: label || key, points: points(lines, key) })).filter((one) => one.points.length));
  if (!layers) return;
  for (const { label, lines } of parts) {
    const keys = [...new Set(lines.flatMap((line) => Object.keys(line).filter((key) => OF_LAYER.test(key))))];
    keys.sort((a, b) => a.match(OF_LAYER)[1] - b.match(OF_LAYER)[1]);
    put(`layers ${label}`, "Relative error by layer", `Of the attention's output${label ? `, stage ${label}` : ""}; one line for each layer.`,
      keys.map((key) => ({ label: `layer ${key.match(OF_LAYER)[1]}`, points: points(lines, key) })));
  }
}

const points = (lines, key) => lines.filter((line) => Number.isFinite(line[key])).map((line) => ({ x: line.step, y: line[key] }));
