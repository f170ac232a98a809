// Makes elements, and formats numbers, sizes and times.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Replaces what is in `place`. The focus goes on to what is called the same as what had it.
export function show(place, ...children) {
  const had = place.contains(document.activeElement) ? called(document.activeElement) : null;
  place.replaceChildren(...children.filter((child) => child != null));
  if (had) [...place.querySelectorAll("a, button, input, select, summary, textarea")].find((one) => called(one) === had)?.focus({ preventScroll: true });
}

const called = (one) => [one.tagName, one.id, one.ariaLabel ?? one.innerText].join(" ");

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const WHEN = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

export const count = (value) => WHOLE.format(value);
export const short = (value) => SHORT.format(value);
export const when = (text) => WHEN.format(new Date(text));
export const figure = (value, digits = 3) => (value == null ? "–" : Math.abs(value) >= 1000 ? WHOLE.format(Number(value).toPrecision(digits)) : Number(value).toPrecision(digits));
export const tick = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 3 });
// Seconds in the two largest units that they have.
export function duration(seconds) {
  const whole = Math.round(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].map(([unit, word], at, all) => [Math.floor((at ? whole % all[at - 1][0] : whole) / unit), word]);
  const first = parts.findIndex(([number]) => number > 0);
  return first < 0 ? "0 s" : parts.slice(first, first + 2).filter(([number]) => number).map(([number, word]) => `${number} ${word}`).join(" ");
}
export const percent = (share) => (share == null ? "–" : share === 1 ? "100 %" : `${(100 * share).toFixed(share > 0.995 ? 2 : 1)} %`);

export function bytes(value) {
  const unit = value < 1000 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), 6);
  const scaled = value / 1000 ** unit;
  return `${unit ? scaled.toPrecision(3) : scaled} ${["B", "kB", "MB", "GB", "TB", "PB", "EB"][unit]}`;
}

const TONES = { ready: "good", committed: "good", missing: "warn", indexing: "warn", withdrawn: "warn", unreadable: "bad", corrupt: "bad" };
export const badge = (state, words = state) => element("span", { class: `badge ${TONES[state] ?? ""}` }, words);

export function tiles(entries) {
  const list = element("dl", { class: "tiles" });
  for (const [name, value, note] of entries) {
    const figures = element("dd", {}, value, note ? element("small", {}, note) : null);
    list.append(element("div", { class: "tile" }, element("dt", {}, name), figures));
  }
  return list;
}

export function facts(entries) {
  const list = element("dl", { class: "facts" });
  for (const [name, value] of entries) {
    if (value != null && value !== "") list.append(element("dt", {}, name), element("dd", {}, value));
  }
  return list;
}
