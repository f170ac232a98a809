// One dataset: its identity, growth, statistics and shards.
import { badge, bytes, count, element, facts, figure, percent, short, show, tiles, when } from "./elements.js";
import { listing } from "./listing.js";
import { notesCard } from "./notes.js";
import { address, ask, enc, follow, save } from "./service.js";
import { charts, quality } from "./statistics.js";
import { captureTable, chain } from "./states.js";

// A dataset that is being indexed is requested again after this time.
const INDEXING_MS = 1000;
// Maximum number of files of a corpus that are listed.
const FILES = 20;
// Maximum number of extensions that are listed.
const EXTENSIONS = 50;

export async function datasetView(place, signal, name) {
  document.title = `${name} – ARWKV datasets`;
  const path = `v1/datasets/${enc(name)}`;
  const dataset = await ask(path, signal);
  const head = [element("p", { class: "crumbs" }, element("a", { href: "#/" }, "Datasets"), " /"),
    element("div", { class: "heading" }, element("h1", {}, name), badge(dataset.state))];
  if (dataset.state === "indexing") {
    show(place, ...head, element("p", { class: "notice", role: "status" },
      `The service is reading this dataset's manifests: ${count(dataset.shards)} so far. Statistics and shards follow.`));
    await new Promise((resolve) => setTimeout(resolve, INDEXING_MS));
    return signal.aborted ? null : datasetView(place, signal, name);
  }
  const [stats, timeline, corpus] = await Promise.all(["stats", "timeline", "corpus"].map((what) => ask(`${path}/${what}`, signal)));
  const grown = dataset.info?.corpus.parts === 0 ? await ask(`${path}/extensions`, signal) : { items: [] };
  const origin = dataset.info ? await ask(`${path}/lineage`, signal) : null;
  const notes = await notesCard(path, signal);
  const numbers = element("div");
  const captures = element("section", { class: "card", "aria-label": "Captures", hidden: true });
  const look = async () => {
    const [made, now, sums] = await Promise.all([ask(`v1/captures?dataset=${enc(name)}`, signal), ask(path, signal), ask(`${path}/stats`, signal)]);
    captures.hidden = !made.items.length;
    if (made.items.length) show(captures, element("h2", {}, "Captures"), captureTable(made.items, false));
    show(numbers, figures(now, sums));
    await notes.refresh();
  };
  show(numbers, figures(dataset, stats));
  show(place,
    ...head,
    dataset.problem ? element("p", { class: "notice bad" }, dataset.problem) : null,
    dataset.faulty_shards ? element("p", { class: "notice" }, `${count(dataset.faulty_shards)} shards are missing or differ from their manifest. The table below shows which.`) : null,
    numbers,
    notes,
    captures,
    dataset.info ? identity(dataset) : null,
    origin ? lineage(name, origin) : null,
    grown.items.length ? extensions(grown.items) : null,
    corpus.report ? reported(corpus.report) : null,
    element("section", { class: "charts", "aria-label": "Statistics" }, ...charts(stats, timeline.points)),
    shards(path, name, dataset, signal));
  follow(["captures", "datasets"], signal, look, () => {});
}

function figures(dataset, stats) {
  const perToken = dataset.tokens ? bytes(Math.round(dataset.size_bytes / dataset.tokens)) : "–";
  return tiles([
    ["Shards", `${count(dataset.shards)} / ${count(dataset.parts)}`, dataset.shards < dataset.parts ? `${percent(dataset.shards / dataset.parts)} done` : dataset.info?.corpus.parts === 0 ? "may grow" : "complete"],
    ["Tokens", short(dataset.tokens), `${count(dataset.samples)} samples`],
    ["Size", bytes(dataset.size_bytes), `${perToken} per token`],
    ["Integrity", dataset.faulty_shards ? `${count(dataset.faulty_shards)} faulty` : dataset.shards ? percent(dataset.verified_shards / dataset.shards) : "–",
      dataset.faulty_shards ? "see the shards below" : dataset.sampled_regions ? `of shards verified, and ${bytes(dataset.sampled_bytes)} in ${count(dataset.sampled_regions)} samples` : "of shards verified"],
    ...quality(stats),
  ]);
}

function identity({ name, info, samples, tokens }) {
  const uri = address(`v1/datasets/${enc(name)}`);
  const said = element("span", { role: "status", class: "soft" });
  const copy = element("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(uri);
    said.textContent = "copied";
  } }, "Copy");
  const { capture, corpus } = info;
  const read = capture.logits !== "none" || capture.hidden_states !== "none";
  const length = corpus.parts ? corpus : { samples, tokens }; // without planned parts, the dataset grows
  return element("section", { class: "card" }, element("h2", {}, "Identity"), facts([
    ["Teacher", info.teacher.model + (info.teacher.revision ? ` @ ${info.teacher.revision}` : "")],
    ["Model", `${info.teacher.model_type}, ${info.teacher.num_hidden_layers} layers, width ${count(info.teacher.hidden_size)}, ${info.teacher.dtype}`],
    ["Vocabulary", `${count(info.tokenizer.vocab_size)} tokens (head of ${count(info.vocab_size_padded)} rows)`],
    ["Logits", !read ? "none: tokens alone, for a capture or stage align" : [capture.logits, capture.top_k && `k = ${capture.top_k}`, capture.top_p && `p = ${capture.top_p}`, capture.samples && `${capture.samples} samples`, capture.logits_codec].filter(Boolean).join(", ")],
    ["Hidden states", capture.hidden_states === "none" ? "none" : `${capture.hidden_states}, ${capture.layers.length || 1} columns, ${capture.hidden_dtype}`],
    ["Corpus", `${corpus.description || corpus.fingerprint}: ${count(length.samples)} samples, ${count(length.tokens)} tokens`],
    ["Command", info.command],
  ]), element("div", { class: "uri" }, element("code", {}, `student train --shards ${uri}`), copy, said));
}

// Text and teacher, this dataset and its copies, the runs that trained on it.
function lineage(name, { corpus, teacher, copies, runs }) {
  const link = (where) => (one) => element("a", { href: `#/${where}/${enc(one)}` }, one);
  return element("section", { class: "card", "aria-label": "Lineage" }, element("h2", {}, "Lineage"), chain([
    ["Text", [corpus]],
    ["Teacher", [teacher]],
    ["Dataset", [element("strong", {}, name), ...copies.map(link("datasets"))]],
    ["Runs", runs.length ? runs.map(link("runs")) : ["none that is served"]],
  ]));
}

// The producer's report of the text; a skipped file is shown with the reason.
function reported(report) {
  const counts = (entries) => entries.filter(([, number]) => number).map(([word, number]) => `${count(number)} ${word}`).join(", ");
  const files = report.files_read ?? [];
  const some = files.slice(0, FILES).join(", ") + (files.length > FILES ? ` and ${count(files.length - FILES)} more` : "");
  return element("section", { class: "card", id: "corpus" }, element("h2", {}, "Corpus"), facts([
    ["Documents", counts([["in the dataset", report.documents], ["of them split", report.documents_cut], ["empty", report.documents_empty], ["duplicate", report.documents_duplicate], ["left over after mixing", report.documents_beyond_share]])],
    ["Tokens", `${count(report.tokens ?? 0)}, of which ${count(report.tokens_counted ?? 0)} count in the loss`],
    ["Turns", counts(Object.entries(report.turns ?? {}))],
    ["Files read", some],
    ["Files skipped", Object.entries(report.files_passed_over ?? {}).slice(0, FILES).map(([name, why]) => `${name} (${why})`).join(", ")],
  ]));
}

// When a dataset that grows was extended, and by how much.
function extensions(items) {
  const first = Math.max(items.length - EXTENSIONS, 0);
  const most = Math.max(...items.map((one) => one.tokens), 1);
  const ends = ({ began_at, ended_at }) => (ended_at ? [began_at ? `${when(began_at)} to` : "until", when(ended_at)].join(" ") : began_at ? `since ${when(began_at)}` : "under way");
  const cells = (one, at) => [
    ["Extension", at ? count(at) : "beginning"],
    ["When", ends(one), "wide"],
    ["State", one.ended_at ? badge("ready", "complete") : badge("indexing", "under way")],
    ["Samples", `+${count(one.samples)}`, "number"],
    ["Tokens", element("div", {}, `+${count(one.tokens)}`, element("progress", { max: most, value: one.tokens, "aria-label": `${count(one.tokens)} tokens added` })), "number"],
    ["Shards", `+${count(one.shards)}`, "number"],
  ];
  const head = cells(items[0], 0).map(([name, , kind]) => element("th", { scope: "col", class: kind === "number" ? kind : null }, name));
  const rows = items.slice(first).map((one, at) => element("tr", {}, ...cells(one, first + at).map(([name, value, kind]) => element("td", { class: kind ?? null, "data-name": name }, value))));
  return element("section", { class: "card", "aria-label": "Extensions" }, element("h2", {}, "Extensions"),
    first ? element("p", { class: "soft" }, `The newest ${count(EXTENSIONS)} of ${count(items.length)}.`) : null,
    element("div", { class: "table" }, element("table", { class: "stack" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))));
}

// When the shard's files were last verified; a button verifies them again.
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

// A link that the browser follows by itself cannot carry the key: the file is fetched with it, and then saved.
function download({ part }, path) {
  const said = element("span", { role: "status", class: "soft" });
  const link = element("a", { href: `${path}/shards/${part}/data`, "aria-label": `Arrow file of part ${part}`, onclick: async (event) => {
    if (!sessionStorage.getItem("key")) return;
    event.preventDefault();
    said.textContent = " fetching…";
    try {
      await save(`${link.href}?direct=false`, `part-${String(part).padStart(6, "0")}.arrow`);
      said.textContent = "";
    } catch (error) {
      said.textContent = ` ${error.message}`;
    }
  } }, "Arrow");
  return element("span", {}, link, said);
}

function shards(path, name, dataset, signal) {
  const state = element("select", { id: "state" }, element("option", { value: "" }, "all"),
    ...["committed", "corrupt", "missing"].map((word) => element("option", { value: word }, word)));
  const sample = element("input", { id: "sample", inputmode: "numeric", pattern: "[0-9]*", size: "8", placeholder: "id" });
  const open = element("button", { type: "submit" }, "Read the sample");
  const table = listing({
    label: `Shards of ${name}`, path: `${path}/shards`, sort: "part", signal, empty: "No shards found.",
    query: () => ({ ...(state.value ? { state: state.value } : {}), ...(/^\d+$/.test(sample.value) ? { sample_id: sample.value } : {}) }),
    columns: [
      { name: "Part", key: "part", cell: (s) => (s.state === "committed" ? element("a", { href: `#/datasets/${enc(name)}/shards/${s.part}` }, String(s.part)) : String(s.part)) },
      { name: "State", cell: (s) => element("div", { class: s.problem ? "problem" : null }, badge(s.state), s.problem ? element("small", {}, s.problem) : null) },
      { name: "Samples", key: "samples", number: true, cell: (s) => (s.samples ? element("a", { href: `#/datasets/${enc(name)}/samples/${s.first_sample_id}` }, `${count(s.first_sample_id)}–${count(s.last_sample_id)}`) : "–") },
      { name: "Tokens", key: "tokens", number: true, cell: (s) => count(s.tokens) },
      { name: "Size", key: "size_bytes", number: true, cell: (s) => bytes(s.size_bytes) },
      { name: "Entropy", key: "entropy_mean", number: true, cell: (s) => figure(s.entropy_mean) },
      { name: "Tail mass", key: "tail_mass_mean", number: true, cell: (s) => figure(s.tail_mass_mean, 2) },
      { name: "Committed", key: "committed_at", number: true, cell: (s) => when(s.committed_at) },
      { name: "Verified", number: true, cell: (s) => verified(s, path) },
      { name: "Data", cell: (s) => (s.state === "committed" ? download(s, path) : "") },
    ],
  });
  state.addEventListener("change", table.reload);
  sample.addEventListener("input", table.reload);
  const form = element("form", { class: "controls", onsubmit: (event) => {
    event.preventDefault();
    if (/^\d+$/.test(sample.value)) location.hash = `#/datasets/${enc(name)}/samples/${sample.value}`;
  } }, element("label", { for: "state" }, "State", state), element("label", { for: "sample" }, "Contains sample", sample), open);
  return element("section", { class: "card" }, element("h2", {}, "Shards"), form, table);
}
