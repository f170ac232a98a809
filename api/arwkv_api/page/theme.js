// The theme: as the system, light or dark. The button at the top changes it; this browser remembers it.
const THEMES = [["", "◐", "as the system"], ["light", "☀", "light"], ["dark", "☾", "dark"]];
const button = document.getElementById("theme");

function wear(name) {
  const [theme, sign, words] = THEMES.find(([known]) => known === name) ?? THEMES[0];
  document.documentElement.dataset.theme = theme;
  button.textContent = sign;
  button.setAttribute("aria-label", `Theme: ${words}`);
  localStorage.setItem("theme", theme);
}

// `redraw` is called whenever the colours change.
export function offerThemes(redraw = () => {}) {
  button.addEventListener("click", () => {
    const now = THEMES.findIndex(([name]) => name === document.documentElement.dataset.theme);
    wear(THEMES[(now + 1) % THEMES.length][0]);
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  wear(localStorage.getItem("theme") ?? "");
}
