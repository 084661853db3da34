// Light, dark, or as the system is.

const KEY = "elasticps-theme";
const CHOICES = ["system", "light", "dark"];

export function themeButton(button, onTheme) {
  const show = (choice) => {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    button.textContent = `Theme: ${choice}`;
    onTheme();
  };
  let choice = CHOICES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";
  show(choice);
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    localStorage.setItem(KEY, choice);
    show(choice);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onTheme);
}

/** What a CSS variable is just now, for a canvas. */
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  probe.hidden = true;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
