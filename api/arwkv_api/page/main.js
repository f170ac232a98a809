// The frame of the page: it selects the view by the address, and shows errors.
import { compareView } from "./compare.js";
import { datasetView } from "./dataset.js";
import { datasetsView } from "./datasets.js";
import { element, show } from "./elements.js";
import { runView, runsView } from "./runs.js";
import { sampleView } from "./sample.js";
import { shardView } from "./shard.js";
import { offerThemes } from "./theme.js";
import { workView } from "./work.js";

const ROUTES = [
  [/^$/, datasetsView, "datasets"],
  [/^work$/, workView, "work"],
  [/^runs$/, runsView, "runs"],
  [/^compare\/(.+)$/, compareView, "runs"],
  [/^runs\/([^/]+)$/, runView, "runs"],
  [/^datasets\/([^/]+)$/, datasetView, "datasets"],
  [/^datasets\/([^/]+)\/shards\/(\d+)$/, shardView, "datasets"],
  [/^datasets\/([^/]+)\/samples\/(\d+)$/, sampleView, "datasets"],
];
const content = document.getElementById("content");
let leaving = new AbortController();

async function go() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const path = location.hash.replace(/^#\/?/, "");
  const [route, view, section] = ROUTES.find(([pattern]) => pattern.test(path)) ?? ROUTES[0];
  for (const link of document.querySelectorAll("[data-section]")) {
    link.toggleAttribute("aria-current", link.dataset.section === section);
  }
  const found = (path.match(route) ?? []).slice(1);
  const names = view === compareView ? found : found.map(decodeURIComponent);
  try {
    await view(content, signal, ...names);
  } catch (error) {
    if (signal.aborted) return;
    show(content, element("h1", {}, "Something went wrong"), element("p", { class: "notice bad", role: "alert" }, error.message));
  }
}

addEventListener("hashchange", () => go().then(() => content.focus({ preventScroll: true })));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
offerThemes(go);
go();
