// One sample: its text, coloured by the teacher's entropy, and the likely tokens at each position.
import { count, element, figure, percent, show } from "./elements.js";
import { ask, enc } from "./service.js";

// Entropy in nats at which the colour is full; most positions of a language model are below.
const FULL_NATS = 5;
const FULL_SHARE = 55;
const WINDOW = 512;

export async function sampleView(place, signal, name, id) {
  document.title = `Sample ${id} of ${name} – ARWKV datasets`;
  const window = (first) => ask(`v1/datasets/${enc(name)}/samples/${id}?first=${first}&limit=${WINDOW}&top=10`, signal);
  const preview = await window(0);
  const inspector = element("aside", { class: "card inspector", tabindex: "0", "aria-live": "polite", "aria-label": "The teacher at this token" });
  const text = element("div", { class: "tokens", role: "group", "aria-label": "Tokens; arrow keys move between them" });
  const tokens = [];
  const buttons = [];
  let chosen = -1;
  const choose = (at, focus) => {
    if (at < 0 || at >= buttons.length) return;
    if (chosen >= 0) {
      buttons[chosen].tabIndex = -1;
      buttons[chosen].setAttribute("aria-pressed", "false");
    }
    chosen = at;
    buttons[at].tabIndex = 0;
    buttons[at].setAttribute("aria-pressed", "true");
    if (focus) buttons[at].focus();
    show(inspector, ...inspect(tokens[at]));
  };
  const append = (fresh) => {
    for (const token of fresh) {
      const at = tokens.push(token) - 1;
      const button = tokenButton(token);
      button.addEventListener("click", () => choose(at, false));
      button.addEventListener("mouseenter", () => choose(at, false));
      button.addEventListener("focus", () => at !== chosen && choose(at, false));
      buttons.push(button);
      text.append(button);
    }
    rest.textContent = tokens.length < preview.n_tokens ? `The first ${count(tokens.length)} of ${count(preview.n_tokens)} tokens.` : "";
    more.hidden = tokens.length >= preview.n_tokens;
  };
  const rest = element("p", { class: "soft", role: "status" });
  const more = element("button", { type: "button", onclick: async () => {
    more.disabled = true;
    try {
      append((await window(tokens.length)).tokens);
    } catch (error) {
      rest.textContent = error.message;
    }
    more.disabled = false;
  } }, "More");
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -chosen, End: buttons.length - 1 - chosen }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    choose(Math.min(Math.max(chosen + step, 0), buttons.length - 1), true);
  });
  append(preview.tokens);
  const step = (by, label) => element("a", { href: `#/datasets/${enc(name)}/samples/${Number(id) + by}` }, label);
  show(place,
    element("p", { class: "crumbs" }, element("a", { href: "#/" }, "Datasets"), " / ", element("a", { href: `#/datasets/${enc(name)}` }, name), " /"),
    element("div", { class: "heading" }, element("h1", {}, `Sample ${count(id)}`), element("span", { class: "soft" }, `part ${preview.part}, ${count(preview.n_tokens)} tokens`, preview.source ? `, ${preview.source}` : "")),
    element("div", { class: "controls" }, Number(id) > 0 ? step(-1, "← Previous") : null, step(1, "Next →"),
      element("span", { class: "legend" }, "sure", element("i"), `${FULL_NATS} nats or more`)),
    preview.tokens.some((token) => token.text != null) ? null : element("p", { class: "notice" }, "This dataset has no tokenizer here, so the page shows token numbers. Put its tokenizer.json beside dataset.json to see the text."),
    element("div", { class: "explorer" }, element("div", { class: "card" }, text,
      preview.n_tokens > WINDOW ? element("div", { class: "controls" }, rest, more) : null), inspector));
  choose(Math.min(1, buttons.length - 1), false);
}

function tokenButton(token) {
  const shown = token.text ?? String(token.id);
  const kind = ["token", token.text == null ? "plain" : "", token.counts ? "" : "uncounted", token.text?.includes("\n") ? "break" : ""].join(" ").trim();
  const words = `token ${token.position}: ${visible(token)}, entropy ${figure(token.entropy)} nats`;
  const made = element("span", { class: kind, role: "button", tabindex: "-1", "aria-pressed": "false", "aria-label": words }, shown);
  const share = Math.min((token.entropy ?? 0) / FULL_NATS, 1) * FULL_SHARE;
  made.style.setProperty("--share", `${share.toFixed(0)}%`);
  return made;
}

// Spaces and line breaks as signs, because they are invisible as text.
function visible({ text, id }) {
  return text == null ? String(id) : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function inspect(token) {
  const title = element("h2", {}, element("code", {}, visible(token)), element("span", { class: "soft" }, ` #${token.id}`));
  if (token.logprob == null && !token.alternatives.length) {
    return [title, element("p", { class: "soft" }, "This is the first token. No token before it predicts it.")];
  }
  const bars = token.alternatives.map((other) => {
    const share = Math.exp(other.logprob);
    return element("li", { class: other.id === token.id ? "true" : null },
      element("span", { class: "piece", title: `#${other.id}` }, visible(other)),
      element("progress", { max: 1, value: share, "aria-label": `probability of ${visible(other)}` }), percent(share));
  });
  return [title,
    element("p", {}, `Teacher's probability of this token: ${token.logprob == null ? "–" : percent(Math.exp(token.logprob))}; entropy ${figure(token.entropy)} nats.`),
    token.counts ? null : element("p", { class: "soft" }, "This token does not count in the loss."),
    element("ul", { class: "bars", "aria-label": "Most likely tokens here" }, ...bars),
    element("p", { class: "soft" }, `Probability of all other tokens: ${percent(token.tail_mass)}`)].filter(Boolean);
}
