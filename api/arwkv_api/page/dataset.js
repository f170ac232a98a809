// One dataset: what it is, how it grew, what is in it, and its shards.
import { chartCard } from "./charts.js";
import { badge, bytes, count, element, facts, figure, percent, short, show, tiles, when } from "./elements.js";
import { listing } from "./listing.js";
import { ask, enc } from "./service.js";

export async function datasetView(place, signal, name) {
  document.title = `${name} – ARWKV datasets`;
  const path = `/v1/datasets/${enc(name)}`;
  const [dataset, stats, timeline] = await Promise.all([path, `${path}/stats`, `${path}/timeline`].map((p) => ask(p, signal)));
  show(place,
    element("p", { class: "crumbs" }, element("a", { href: "#/" }, "Datasets"), " /"),
    element("div", { class: "heading" }, element("h1", {}, name), badge(dataset.state)),
    dataset.problem ? element("p", { class: "notice bad" }, dataset.problem) : null,
    dataset.faulty_shards ? element("p", { class: "notice" }, `${count(dataset.faulty_shards)} shards vanished or fail their manifest; the table below says which.`) : null,
    figures(dataset, stats),
    dataset.info ? identity(dataset) : null,
    element("section", { class: "charts", "aria-label": "Statistics" }, ...charts(stats, timeline)),
    shards(path, name, dataset, signal));
}

function figures(dataset, stats) {
  const perToken = dataset.tokens ? bytes(Math.round(dataset.size_bytes / dataset.tokens)) : "–";
  return tiles([
    ["Shards", `${count(dataset.shards)} / ${count(dataset.parts)}`, dataset.shards < dataset.parts ? `${percent(dataset.shards / dataset.parts)} done` : "complete"],
    ["Tokens", short(dataset.tokens), `${count(dataset.samples)} samples`],
    ["Size", bytes(dataset.size_bytes), `${perToken} per token`],
    ["Integrity", dataset.faulty_shards ? `${count(dataset.faulty_shards)} faulty` : dataset.shards ? percent(dataset.verified_shards / dataset.shards) : "–",
      dataset.faulty_shards ? "see the shards below" : "of shards read through"],
    ["Teacher perplexity", figure(stats.teacher_perplexity), `${figure(stats.teacher_nll_mean)} nats per token`],
    ["Mean entropy", figure(stats.entropy_mean), "nats, full distribution"],
    ["Mass kept", stats.tail_mass_p50 == null ? "–" : percent(1 - stats.tail_mass_p50), stats.tail_mass_p99 == null ? "" : `p1 ${percent(1 - stats.tail_mass_p99)}, ${figure(stats.mean_k)} entries`],
  ]);
}

function identity({ name, info }) {
  const uri = `${location.origin}/v1/datasets/${enc(name)}`;
  const said = element("span", { role: "status", class: "soft" });
  const copy = element("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(uri);
    said.textContent = "copied";
  } }, "Copy");
  const capture = info.capture;
  return element("section", { class: "card" }, element("h2", {}, "Identity"), facts([
    ["Teacher", info.teacher.model + (info.teacher.revision ? ` @ ${info.teacher.revision}` : "")],
    ["Model", `${info.teacher.model_type}, ${info.teacher.num_hidden_layers} layers, width ${count(info.teacher.hidden_size)}, ${info.teacher.dtype}`],
    ["Vocabulary", `${count(info.tokenizer.vocab_size)} tokens (head of ${count(info.vocab_size_padded)} rows)`],
    ["Logits", [capture.logits, capture.top_k && `k = ${capture.top_k}`, capture.top_p && `p = ${capture.top_p}`, capture.samples && `${capture.samples} samples`, capture.logits_codec].filter(Boolean).join(", ")],
    ["Hidden states", capture.hidden_states === "none" ? "none" : `${capture.hidden_states}, ${capture.layers.length || 1} columns, ${capture.hidden_dtype}`],
    ["Corpus", `${info.corpus.description || info.corpus.fingerprint}: ${count(info.corpus.samples)} samples, ${count(info.corpus.tokens)} tokens`],
    ["Made with", info.command],
  ]), element("div", { class: "uri" }, element("code", {}, `student train --shards ${uri}`), copy, said));
}

function charts(stats, { points }) {
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
      title: "Entropy of the teacher", note: `Positions by nats; mean ${figure(stats.entropy_mean)}.`, kind: "bar",
      categories: stats.entropy_histogram.map((_, bin) => (bin * 0.25).toFixed(2)),
      series: [{ label: "positions", values: stats.entropy_histogram }],
      x: { title: "nats" }, y: { zero: true, tick: short, say: count },
    }));
  }
  if (stats.tail_histogram.length) made.push(coverage(stats));
  const columns = Object.entries(stats.bytes_by_column).filter(([, size]) => size > 0).sort((a, b) => b[1] - a[1]);
  if (columns.length) {
    made.push(chartCard({
      title: "Bytes per token", note: "Stored, by column.", kind: "bar", horizontal: true,
      categories: columns.map(([column]) => column),
      series: [{ label: "bytes per token", values: columns.map(([, size]) => size / Math.max(stats.tokens, 1)) }],
      x: {}, y: { zero: true, say: (v) => figure(v) },
    }));
  }
  const layers = Object.keys(stats.hidden_rms);
  if (layers.length) {
    const lossy = Object.values(stats.hidden_worst_channel_error).some((error) => error > 0);
    made.push(chartCard({
      title: "Hidden states by layer", note: lossy ? "Root mean square, and the worst channel's relative error." : "Root mean square; stored without loss.", kind: "bar",
      categories: layers.map((column) => column.replace("hidden.", "")),
      series: [{ label: "RMS", values: Object.values(stats.hidden_rms) },
        ...(lossy ? [{ label: "worst channel error", values: layers.map((l) => stats.hidden_worst_channel_error[l] ?? 0) }] : [])],
      x: {}, y: { zero: true, say: (v) => figure(v) },
    }));
  }
  const lengths = Object.entries(stats.length_histogram);
  if (lengths.length) {
    made.push(chartCard({
      title: "Sample lengths", note: "Samples by tokens, up to the figure below.", kind: "bar",
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

// Bins are 0.125 nats of -log(tail mass): regrouped by the share of the teacher's mass that was kept.
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

// When the shard's files were last read through; asking again is a button's work.
function verified(shard, path) {
  if (shard.state !== "committed") return "–";
  const button = element("button", { type: "button", class: "text-button", "aria-label": `Verify part ${shard.part} now`, onclick: async () => {
    button.disabled = true;
    button.textContent = "reading…";
    try {
      const fresh = await ask(`${path}/shards/${shard.part}/verify`, undefined, "POST");
      said.replaceWith(...(fresh.problem ? [badge(fresh.state), element("small", {}, ` ${fresh.problem}`)] : [verified(fresh, path)]));
    } catch (error) {
      said.textContent = error.message;
    }
  } }, shard.verified_at ? when(shard.verified_at) : "verify");
  const said = element("span", { role: "status" }, button);
  return said;
}

function shards(path, name, dataset, signal) {
  const state = element("select", { id: "state" }, element("option", { value: "" }, "all"),
    ...["committed", "corrupt", "missing"].map((word) => element("option", { value: word }, word)));
  const sample = element("input", { id: "sample", inputmode: "numeric", pattern: "[0-9]*", size: "8", placeholder: "id" });
  const open = element("button", { type: "submit" }, "Read the sample");
  const table = listing({
    label: `Shards of ${name}`, path: `${path}/shards`, sort: "part", signal, empty: "No shard here yet.",
    query: () => ({ ...(state.value ? { state: state.value } : {}), ...(/^\d+$/.test(sample.value) ? { sample_id: sample.value } : {}) }),
    columns: [
      { name: "Part", key: "part", cell: (s) => element("a", { href: `${path}/shards/${s.part}/stats` }, String(s.part)) },
      { name: "State", cell: (s) => element("div", { class: s.problem ? "problem" : null }, badge(s.state), s.problem ? element("small", {}, s.problem) : null) },
      { name: "Samples", key: "samples", number: true, cell: (s) => (s.samples ? element("a", { href: `#/datasets/${enc(name)}/samples/${s.first_sample_id}` }, `${count(s.first_sample_id)}–${count(s.last_sample_id)}`) : "–") },
      { name: "Tokens", key: "tokens", number: true, cell: (s) => count(s.tokens) },
      { name: "Size", key: "size_bytes", number: true, cell: (s) => bytes(s.size_bytes) },
      { name: "Entropy", key: "entropy_mean", number: true, cell: (s) => figure(s.entropy_mean) },
      { name: "Tail mass", key: "tail_mass_mean", number: true, cell: (s) => figure(s.tail_mass_mean, 2) },
      { name: "Committed", key: "committed_at", number: true, cell: (s) => when(s.committed_at) },
      { name: "Verified", number: true, cell: (s) => verified(s, path) },
      { name: "Data", cell: (s) => (s.state === "committed" ? element("a", { href: `${path}/shards/${s.part}/data`, "aria-label": `Arrow file of part ${s.part}` }, "Arrow") : "") },
    ],
  });
  state.addEventListener("change", table.reload);
  sample.addEventListener("input", table.reload);
  const form = element("form", { class: "controls", onsubmit: (event) => {
    event.preventDefault();
    if (/^\d+$/.test(sample.value)) location.hash = `#/datasets/${enc(name)}/samples/${sample.value}`;
  } }, element("label", { for: "state" }, "State", state), element("label", { for: "sample" }, "With sample", sample), open);
  return element("section", { class: "card" }, element("h2", {}, "Shards"), form, table);
}
