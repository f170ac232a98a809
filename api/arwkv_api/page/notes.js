// People's notes and tags on a dataset or a run: shown to all, edited where a key is given.
import { element, show, when } from "./elements.js";
import { request } from "./service.js";

const MOST_CHARACTERS = 8000;

// The tags as badges; with `choose`, as buttons that list what else has the tag.
export function tagList(tags, choose) {
  if (!tags.length) return null;
  return element("span", { class: "tags" }, ...tags.map((tag) => (choose
    ? element("button", { type: "button", class: "badge", "aria-label": `Only with tag ${tag}`, onclick: () => choose(tag) }, tag)
    : element("span", { class: "badge" }, tag))));
}

// The chosen tag of a list: `value`, and a button `place` that drops it. `changed` is called after each choice.
export function tagChoice(changed) {
  const choice = { value: "" };
  choice.choose = (tag) => {
    choice.value = tag;
    choice.place.hidden = !tag;
    choice.place.textContent = `tag ${tag} ×`;
    choice.place.ariaLabel = `Drop tag ${tag}`;
    changed();
  };
  choice.place = element("button", { type: "button", hidden: true, onclick: () => choice.choose("") });
  return choice;
}

// A card of the notes of what `path` names. Its `refresh` shows what is there now, unless they are being edited.
export async function notesCard(path, signal) {
  const card = element("section", { class: "card", "aria-label": "Notes" });
  let there = null;
  let version = null;
  let form = null;
  let turn = 0;

  async function read() {
    const answer = await request(`${path}/notes`, signal);
    return [await answer.json(), answer.headers.get("ETag")];
  }

  function words() {
    const said = there.changed_at_s == null ? null : `Changed ${when(new Date(1000 * there.changed_at_s).toISOString())}.`;
    return [there.text ? element("p", { class: "note", dir: "auto" }, there.text) : null, tagList(there.tags), said ? element("small", { class: "soft" }, said) : null];
  }

  function draw() {
    const key = Boolean(sessionStorage.getItem("key"));
    card.hidden = !key && !there.text && !there.tags.length;
    show(card, element("h2", {}, "Notes"), ...words(),
      key ? element("div", { class: "controls" }, element("button", { type: "button", onclick: edit }, "Edit notes")) : null);
  }

  function edit() {
    turn += 1; // an answer under way may neither close the form nor pass off later notes as those in it
    const text = element("textarea", { id: "note-text", rows: 5, maxlength: MOST_CHARACTERS, dir: "auto" });
    const tags = element("input", { id: "note-tags", autocomplete: "off", placeholder: "baseline round-3" });
    const theirs = element("div", { class: "theirs", hidden: true });
    const said = element("p", { role: "status", class: "soft" });
    [text.value, tags.value] = [there.text, there.tags.join(" ")];
    const save = async (event) => {
      event.preventDefault();
      const body = JSON.stringify({ text: text.value, tags: tags.value.split(/[\s,]+/).filter(Boolean) });
      try {
        const answer = await request(`${path}/notes`, signal, "PUT", { body, headers: { "Content-Type": "application/json", "If-Match": version } });
        [there, version] = [await answer.json(), answer.headers.get("ETag")];
        if (form === mine) leave();
      } catch (error) {
        said.textContent = error.message;
        if (error.status !== 412) return;
        [there, version] = await read();
        theirs.hidden = false;
        show(theirs, element("p", {}, "Somebody else has changed these notes meanwhile to:"), ...words());
        said.textContent = "Yours are not saved. Take over what should stay; saving again replaces theirs.";
      }
    };
    const leave = () => {
      form = null;
      draw();
      card.querySelector("button")?.focus();
      card.refresh();
    };
    const mine = element("form", { class: "noting", onsubmit: save },
      element("label", { for: text.id }, "Text", text), element("label", { for: tags.id }, "Tags, between spaces", tags),
      element("div", { class: "controls" }, element("button", { type: "submit" }, "Save"), element("button", { type: "button", class: "quiet", onclick: leave }, "Cancel"), said));
    form = mine;
    show(card, element("h2", {}, "Notes"), theirs, form);
    text.focus();
  }

  card.refresh = async () => {
    if (form) return;
    const mine = ++turn;
    try {
      const found = await read();
      if (mine !== turn) return;
      [there, version] = found;
      draw();
    } catch (error) {
      if (!signal.aborted && mine === turn) show(card, element("h2", {}, "Notes"), element("p", { class: "notice" }, error.message));
    }
  };
  await card.refresh();
  return card;
}
