// One shard: its statistics.
import { badge, bytes, count, element, figure, show, tiles, when } from "./elements.js";
import { ask, enc } from "./service.js";
import { charts, quality } from "./statistics.js";

export async function shardView(place, signal, name, part) {
  document.title = `Part ${part} of ${name} – ARWKV datasets`;
  const path = `v1/datasets/${enc(name)}/shards/${part}`;
  const [shard, stats] = await Promise.all([ask(path, signal), ask(`${path}/stats`, signal)]);
  show(place,
    element("p", { class: "crumbs" }, element("a", { href: "#/" }, "Datasets"), " / ", element("a", { href: `#/datasets/${enc(name)}` }, name), " /"),
    element("div", { class: "heading" }, element("h1", {}, `Part ${part}`), badge(shard.state),
      element("span", { class: "soft" }, `committed ${when(shard.committed_at)}`)),
    shard.problem ? element("p", { class: "notice bad" }, shard.problem) : null,
    tiles([
      ["Samples", count(shard.samples), `${count(shard.first_sample_id)}–${count(shard.last_sample_id)}`],
      ["Tokens", count(shard.tokens), `${figure(shard.samples ? shard.tokens / shard.samples : null)} per sample`],
      ["Size", bytes(shard.size_bytes), shard.verified_at ? `verified ${when(shard.verified_at)}` : "not verified yet"],
      ...quality(stats),
    ]),
    element("section", { class: "charts", "aria-label": "Statistics" }, ...charts(stats)));
}
