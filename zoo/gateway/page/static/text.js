// Elements and figures. Whatever comes from the zoo goes in as text, never as HTML.

/** An element. `how`: properties; `data`, `vars` (custom properties) and `aria` are tables of their own. */
export function make(tag, how = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(how)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name === "vars") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (name === "aria") for (const [key, one] of Object.entries(value)) made.setAttribute(`aria-${key}`, one);
    else if (name === "role") made.setAttribute("role", value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets a text where it is another one: an untouched element costs no layout, and keeps a selection. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n) => (n ? whole.format(n) : "–");
export const mb = (n) => whole.format(n);
export const gb = (n) => `${(n / 1024).toFixed(n < 10240 ? 2 : 1)} GB`;
export const rate = (n) => (n ? n.toFixed(1) : "–");

/** Seconds as milliseconds. */
export function ms(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const n = seconds * 1000;
  return n < 9.95 ? n.toFixed(1) : whole.format(n);
}

/** How long, in words. */
export function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

export function clock(at, seconds = true) {
  const when = new Date(at * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${two(when.getHours())}:${two(when.getMinutes())}${seconds ? `:${two(when.getSeconds())}` : ""}`;
}

/** The colour of a model, far from those of its neighbours in the list: custom properties for `vars` of `make`. */
export function tint(index) {
  return { "--hue": String(Math.round((index * 137.5 + 215) % 360)), "--shade": String([0, -0.08, 0.05][Math.floor(index / 8) % 3]) };
}
