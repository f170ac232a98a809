// Work in progress: captures that run, and runs that train. Each figure is what its process said last.
import { element, show } from "./elements.js";
import { runTable } from "./runs.js";
import { ask, follow } from "./service.js";
import { captureTable, connection } from "./states.js";

export async function workView(place, signal) {
  document.title = "In progress – ARWKV datasets";
  const status = element("span", { role: "status" });
  const captures = element("section", { class: "card", "aria-label": "Captures" });
  const runs = element("section", { class: "card", "aria-label": "Runs" });
  show(place, element("div", { class: "heading" }, element("h1", {}, "In progress"), status), captures, runs);
  const look = async () => {
    const [made, trained] = await Promise.all([ask("v1/captures?limit=200", signal), ask("v1/runs?limit=200", signal)]);
    const running = trained.items.filter((run) => run.state === "running");
    show(captures, element("h2", {}, "Captures"), captureTable(made.items) ?? element("p", { class: "soft" }, "No capture has said anything yet."));
    show(runs, element("h2", {}, "Runs"), running.length ? runTable(running) : element("p", { class: "soft" }, "No run is going on."));
  };
  await look();
  follow(["captures", "runs"], signal, look, (error) => connection(status, error));
}
