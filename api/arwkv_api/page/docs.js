// Every operation of /openapi.json with parameters and responses, to try here or to paste into a shell.
import { element, show } from "./elements.js";
import { address } from "./service.js";
import { offerThemes } from "./theme.js";

const LONGEST_SHOWN = 20_000;
const content = document.getElementById("content");

async function draw() {
  const book = await (await fetch("openapi.json")).json();
  const groups = new Map();
  for (const [path, operations] of Object.entries(book.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), { path, method: method.toUpperCase(), ...operation }]);
    }
  }
  const key = element("input", { id: "key", type: "password", autocomplete: "off", placeholder: "where the service needs one" });
  key.value = sessionStorage.getItem("key") ?? "";
  key.addEventListener("input", () => sessionStorage.setItem("key", key.value));
  show(content,
    element("div", { class: "heading" }, element("h1", {}, "API"), element("a", { href: "openapi.json" }, "openapi.json")),
    ...book.info.description.split("\n").map((line) => element("p", {}, ...prose(line))),
    element("div", { class: "controls" }, element("label", { for: "key" }, "Key", key)),
    ...[...groups].map(([tag, operations]) => element("section", { class: "card", "aria-labelledby": `tag-${tag}` },
      element("h2", { id: `tag-${tag}` }, tag), ...operations.map((one) => entry(one, book)))));
}

function entry(operation, book) {
  const { method, path, description, parameters = [], requestBody, responses } = operation;
  const body = requestBody ? resolve(requestBody.content["application/json"].schema, book) : null;
  return element("details", { class: "operation" },
    element("summary", {}, element("span", { class: `badge ${method === "GET" || method === "HEAD" ? "" : "warn"}` }, method),
      " ", element("code", {}, path), element("span", { class: "soft" }, " ", ...prose(description))),
    parameters.length || body ? element("h3", {}, "Takes") : null,
    parameters.length ? grid(`Parameters of ${method} ${path}`, ["Name", "In", "Values", "Meaning"], parameters.map((p) => [
      element("code", {}, p.name), p.in + (p.required ? ", required" : ""), values(resolve(p.schema, book)), ...[p.description ?? p.schema.description ?? ""].map((words) => element("span", {}, ...prose(words)))])) : null,
    body ? grid(`Body of ${method} ${path}`, ["Field", "Values", "Meaning"], Object.entries(body.properties).map(([name, field]) => [
      element("code", {}, name), values(field), field.description ?? ""])) : null,
    element("h3", {}, "Responses"),
    grid(`Responses of ${method} ${path}`, ["Status", "Meaning", "Content"], Object.entries(responses).map(([status, answer]) => [
      status, answer.description, Object.keys(answer.content ?? {}).join(", ")])),
    element("h3", {}, "Try it"), trial(operation, body));
}

function trial({ method, path, parameters = [], operationId }, body) {
  const asked = parameters.filter((p) => p.in !== "header" || method === "PUT").map((p) => {
    const id = `${operationId}-${p.name}`;
    const input = element("input", { id, size: 14, required: p.required, autocomplete: "off" });
    input.value = p.required ? String(p.example ?? p.schema.examples?.[0] ?? "") : "";
    return { ...p, input, label: element("label", { for: id }, p.name, input) };
  });
  const text = body ? element("textarea", { id: `${operationId}-body`, rows: 3, spellcheck: "false" }) : null;
  if (text) text.value = JSON.stringify(Object.fromEntries(Object.entries(body.properties).map(([name, field]) => [name, field.examples?.[0] ?? ""])));
  const answer = element("div", { class: "answer", role: "status" });
  const form = element("form", { class: "controls", onsubmit: (event) => {
    event.preventDefault();
    const named = asked.filter((p) => p.in === "header" && p.input.value).map((p) => [p.name, p.input.value]);
    send(method, filled(path, asked), Object.fromEntries(named), text?.value, answer);
  } }, ...asked.map(({ label }) => label), text ? element("label", { for: text.id }, "body", text) : null,
  element("button", { type: "submit", "aria-label": `Send ${method} ${path}` }, "Send"));
  return element("div", { class: "trial" }, form, answer);
}

function filled(path, asked) {
  const resource = path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(asked.find((p) => p.name === name).input.value));
  const query = new URLSearchParams(asked.filter((p) => p.in === "query" && p.input.value).map((p) => [p.name, p.input.value]));
  return address(resource.slice(1)) + (query.size ? `?${query}` : "");
}

async function send(method, url, named, body, place) {
  const key = sessionStorage.getItem("key");
  const headers = { ...named, ...(key ? { Authorization: `Bearer ${key}` } : {}), ...(body ? { "Content-Type": "application/json" } : {}) };
  const quoted = (words) => `'${words.replaceAll("'", "'\\''")}'`;
  const curl = ["curl", "-s", method === "GET" ? "" : method === "HEAD" ? "-I" : `-X ${method}`,
    key ? "-H \"Authorization: Bearer $ARWKV_API_KEY\"" : "", ...Object.entries(named).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`),
    body ? `-H 'Content-Type: application/json' -d ${quoted(body)}` : "", quoted(url)].filter(Boolean).join(" ");
  show(place, element("pre", {}, curl), element("p", { class: "soft" }, "asking…"));
  try {
    const got = await fetch(url, { method, headers, body });
    show(place, element("pre", { tabindex: "0" }, curl),
      element("p", {}, element("span", { class: `badge ${got.ok ? "good" : "bad"}` }, `${got.status} ${got.statusText}`.trim()),
        element("span", { class: "soft" }, ` ${got.headers.get("content-type") ?? "no body"}`)),
      element("pre", { tabindex: "0" }, await readable(got)));
  } catch (error) {
    show(place, element("pre", {}, curl), element("p", { class: "notice bad" }, error.message));
  }
}

async function readable(got) {
  const kind = got.headers.get("content-type") ?? "";
  if (!/json|text/.test(kind)) {
    await got.body?.cancel();
    return `${got.headers.get("content-length") ?? "?"} bytes, not shown`;
  }
  const text = await got.text();
  const pretty = kind.includes("json") && text ? JSON.stringify(JSON.parse(text), null, 2) : text;
  return pretty.length > LONGEST_SHOWN ? `${pretty.slice(0, LONGEST_SHOWN)}\n… ${pretty.length - LONGEST_SHOWN} characters more` : pretty;
}

function resolve(schema, book) {
  return schema.$ref ? book.components.schemas[schema.$ref.split("/").at(-1)] : schema;
}

function values(schema) {
  const some = schema.anyOf?.find((one) => one.type !== "null") ?? schema;
  const bounds = [["minimum", "≥"], ["maximum", "≤"], ["maxLength", "length ≤"]].filter(([name]) => some[name] != null).map(([name, sign]) => `${sign} ${some[name]}`);
  const rest = [some.enum ? some.enum.join(", ") : some.const ?? some.type, ...bounds, schema.default != null ? `default ${schema.default}` : ""];
  return rest.filter(Boolean).join("; ");
}

// Shows `words` between backquotes as code.
function prose(words) {
  return words.split("`").map((piece, at) => (at % 2 ? element("code", {}, piece) : piece));
}

function grid(label, names, rows) {
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": label }, element("table", {},
    element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)))))));
}

offerThemes();
draw().catch((error) => show(content, element("h1", {}, "API"), element("p", { class: "notice bad", role: "alert" }, error.message)));
