// Light, dark, or as the system has it; kept for the next visit where the browser keeps anything.

const KEY = "evenorm-theme";

function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function remember(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // A page that may not keep anything has the theme until it is closed.
  }
}

/** Let a select choose the theme; `changed` is called after each choice. */
export function theming(select, changed) {
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    changed();
  };
  select.value = remembered() ?? "auto";
  if (!select.value) select.value = "auto";
  select.addEventListener("change", () => {
    remember(select.value);
    apply(select.value);
  });
  apply(select.value);
}
