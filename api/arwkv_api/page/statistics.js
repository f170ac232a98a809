// Tiles and charts of statistics, of a dataset or of one of its shards.
import { chartCard } from "./charts.js";
import { count, figure, percent, short, tick, when } from "./elements.js";

// Tiles of the teacher's perplexity and entropy, and of the probability mass that was kept; none without logits.
export const quality = (stats) => !stats.positions ? [] : [
  ["Teacher perplexity", figure(stats.teacher_perplexity), `${figure(stats.teacher_nll_mean)} nats per token`],
  ["Mean entropy", figure(stats.entropy_mean), "nats, full distribution"],
  ["Mass kept", stats.tail_mass_p50 == null ? "–" : percent(1 - stats.tail_mass_p50), stats.tail_mass_p99 == null ? "" : `p1 ${percent(1 - stats.tail_mass_p99)}, ${figure(stats.mean_k)} entries`],
];

const share = (value) => `${tick(100 * value)} %`;
const layer = (column) => column.replace("hidden.", "");

// A chart for each part of `stats`, a dataset's or a shard's; `points` are a dataset's totals over time.
export function charts(stats, points = []) {
  const made = [];
  if (points.length) {
    const day = (at) => when(new Date(at).toISOString());
    made.push(chartCard({
      title: "Tokens over time", note: "All committed shards together.", kind: "area",
      series: [{ label: "tokens", points: points.map((p) => ({ x: Date.parse(p.at), y: p.tokens })) }],
      x: { title: "", tick: (at) => span(points, at), say: day }, y: { zero: true, tick: short, say: count },
    }));
  }
  if (stats.entropy_histogram.length) {
    made.push(chartCard({
      title: "Entropy of the teacher", note: `Positions by entropy in nats; mean ${figure(stats.entropy_mean)}.`, kind: "bar",
      categories: stats.entropy_histogram.map((_, bin) => (bin * 0.25).toFixed(2)),
      series: [{ label: "positions", values: stats.entropy_histogram }],
      x: { title: "nats" }, y: { zero: true, tick: short, say: count },
    }));
  }
  if (stats.tail_histogram.length) made.push(coverage(stats));
  const columns = Object.entries(stats.bytes_by_column).filter(([, size]) => size > 0).sort((a, b) => b[1] - a[1]);
  if (columns.length) {
    made.push(chartCard({
      title: "Bytes per token", note: "Stored bytes of each column.", kind: "bar", horizontal: true,
      categories: columns.map(([column]) => column),
      series: [{ label: "bytes per token", values: columns.map(([, size]) => size / Math.max(stats.tokens, 1)) }],
      x: {}, y: { zero: true, say: (v) => figure(v) },
    }));
  }
  const layers = Object.keys(stats.hidden_rms);
  if (layers.length) {
    made.push(chartCard({
      title: "Hidden states by layer", note: "Root mean square of the teacher's values.", kind: "bar",
      categories: layers.map(layer), series: [{ label: "RMS", values: Object.values(stats.hidden_rms) }],
      x: {}, y: { zero: true, say: (v) => figure(v) },
    }));
  }
  // A chart of its own: next to the root mean square, an error of a few thousandths would be invisible.
  const lossy = Object.entries(stats.hidden_worst_channel_error).filter(([, error]) => error > 0);
  if (lossy.length) {
    made.push(chartCard({
      title: "Quantization error by layer", note: "Worst channel, relative to its root mean square.", kind: "bar",
      categories: lossy.map(([column]) => layer(column)), series: [{ label: "relative error", values: lossy.map(([, error]) => error) }],
      x: {}, y: { zero: true, tick: share, say: share },
    }));
  }
  const lengths = Object.entries(stats.length_histogram);
  if (lengths.length) {
    made.push(chartCard({
      title: "Sample lengths", note: "Number of samples; each bar counts lengths up to its label.", kind: "bar",
      categories: lengths.map(([length]) => `≤ ${count(length)}`), series: [{ label: "samples", values: lengths.map(([, n]) => n) }],
      x: { title: "tokens" }, y: { zero: true, tick: short, say: count },
    }));
  }
  return made;
}

function span(points, at) {
  const hours = (Date.parse(points.at(-1).at) - Date.parse(points[0].at)) / 3.6e6;
  const parts = hours < 0.1 ? { timeStyle: "medium" } : hours < 30 ? { timeStyle: "short" } : { dateStyle: "medium" };
  return new Intl.DateTimeFormat("en-GB", parts).format(at);
}

// Bins of 0.125 nats of -log(tail mass) are regrouped by the share of the teacher's mass that was kept.
function coverage(stats) {
  const edges = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999];
  const labels = ["< 50 %", "50–80 %", "80–90 %", "90–95 %", "95–98 %", "98–99 %", "99–99.9 %", "> 99.9 %"];
  const values = labels.map(() => 0);
  stats.tail_histogram.forEach((positions, bin) => {
    const kept = 1 - Math.exp(-(bin + 0.5) * 0.125);
    values[edges.filter((edge) => kept >= edge).length] += positions;
  });
  return chartCard({
    title: "Mass kept by the stored entries", note: `Positions; half keep ${percent(1 - stats.tail_mass_p50)} or more, 99 % keep ${percent(1 - stats.tail_mass_p99)} or more.`,
    kind: "bar", categories: labels, series: [{ label: "positions", values }], x: {}, y: { zero: true, tick: short, say: count },
  });
}
