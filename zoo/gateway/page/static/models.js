// The table of models: a row each, in a place of its own, and under the chosen one what was decided about it.

import { clock, count, make, mb, ms, put, rate, span, tint } from "./text.js";

const FIGURES = ["mb", "leases", "run", "wait", "rate", "p50", "p95"];
const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

function inOneLine(model) {
  const parts = [
    model.rate && `${rate(model.rate)} req/s`,
    model.waiting && `${model.waiting} waiting`,
    model.leases && plural(model.leases, "lease"),
    is_here(model) && model.count && `p50 ${ms(model.p50)}, p95 ${ms(model.p95)} ms`,
  ];
  return parts.filter(Boolean).join(" · ");
}

const is_here = (model) => model.workers > 0;
const LEFT = 8; // decisions about a model that are shown

export class ModelTable {
  /** `act(what, model)`: a button was pressed. `decisions(name)`: those about a model, the latest first. */
  constructor(body, act, decisions) {
    this.body = body;
    this.act = act;
    this.decisions = decisions;
    this.rows = new Map();
    this.models = [];
    this.chosen = "";
    this.open = "";
    this.rights = "viewer";
  }

  show(models) {
    this.models = models;
    const names = new Set(models.map((model) => model.name));
    for (const [name, row] of this.rows) {
      if (!names.has(name)) {
        row.main.remove();
        row.more.remove();
        this.rows.delete(name);
      }
    }
    models.forEach((model, index) => {
      const row = this.rows.get(model.name) ?? this.add(model.name);
      if (this.body.children[2 * index] !== row.main) {
        this.body.insertBefore(row.main, this.body.children[2 * index] ?? null);
        row.main.after(row.more);
      }
      this.fill(row, model, index);
    });
    if (!names.has(this.chosen)) this.choose(models[0]?.name ?? "", false);
    if (this.open) this.fillMore(this.open);
  }

  add(name) {
    const cell = (kind, tag = "td", numeric = false) => make(tag, { className: `c-${kind}${numeric ? " n" : ""}`, role: tag === "th" ? "rowheader" : "cell" });
    const row = { cells: {}, buttons: {} };
    for (const kind of ["name", "state", "priority"]) row.cells[kind] = cell(kind, kind === "name" ? "th" : "td");
    for (const kind of FIGURES) row.cells[kind] = cell(kind, "td", true);
    row.cells.why = cell("why");
    row.cells.do = cell("do");
    row.cells.load = cell("load");
    row.cells.load.setAttribute("aria-hidden", "true");
    row.cells.name.scope = "row";
    row.label = make("span", { className: "label" });
    row.badges = make("span", { className: "badges" });
    row.cells.name.append(make("div", { className: "id" }, make("i", { className: "chip" }), row.label, row.badges));
    row.state = make("span", { className: "state" });
    row.cells.state.append(row.state);
    row.why = make("span", { className: "why" });
    row.since = make("span", { className: "since" });
    row.cells.why.append(row.why, row.since);
    for (const what of ["load", "unload", "pin"]) {
      const button = make("button", { type: "button", tabIndex: -1, className: "do", data: { do: what } });
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        this.act(button.dataset.do, name);
      });
      row.buttons[what] = button;
      row.cells.do.append(button);
    }
    row.main = make("tr", { className: "row", role: "row", tabIndex: -1, data: { model: name } }, ...Object.values(row.cells));
    row.main.addEventListener("click", () => this.toggle(name));
    row.main.addEventListener("focus", () => this.choose(name, false));
    row.more = make("tr", { className: "more", role: "row", hidden: true }, make("td", { colSpan: 12, role: "cell" }));
    this.rows.set(name, row);
    this.body.append(row.main, row.more);
    return row;
  }

  fill(row, model, index) {
    for (const [key, value] of Object.entries(tint(index))) row.main.style.setProperty(key, value);
    row.main.classList.toggle("here", is_here(model));
    row.main.dataset.state = model.state;
    put(row.label, model.name);
    row.label.title = model.category ? `${model.name}, ${model.category}` : model.name;
    const badges = [model.pinned && "pinned", model.stand_in && "stand-in", model.workers > 1 && `${model.workers} workers`].filter(Boolean);
    if (row.badges.dataset.is !== badges.join()) {
      row.badges.dataset.is = badges.join();
      row.badges.replaceChildren(...badges.map((text) => make("em", { textContent: text })));
    }
    const state = !model.enabled ? "disabled" : model.state;
    put(row.state, state);
    row.state.dataset.state = state;
    put(row.cells.priority, model.priority.toLowerCase());
    row.cells.priority.dataset.priority = model.priority;
    put(row.cells.mb, mb(is_here(model) ? model.charged_mb : model.declared_mb));
    row.cells.mb.title = `declared ${mb(model.declared_mb)} MB${model.measured_mb === null ? "" : `, measured ${mb(model.measured_mb)} MB`}`;
    put(row.cells.leases, count(model.leases));
    put(row.cells.run, count(model.running));
    put(row.cells.wait, count(model.waiting));
    put(row.cells.rate, rate(model.rate));
    put(row.cells.p50, ms(model.p50));
    put(row.cells.p95, ms(model.p95));
    row.cells.wait.classList.toggle("hot", model.waiting > 0);
    put(row.cells.load, inOneLine(model));
    for (const kind of ["leases", "run", "wait", "rate", "p50", "p95"]) row.cells[kind].classList.toggle("nil", row.cells[kind].textContent === "–");
    put(row.why, model.why);
    row.why.title = model.why;
    row.at = model.why_at;
    this.buttons(row, model);
  }

  buttons(row, model) {
    const operates = this.rights === "operator";
    const goes = ["unloaded", "waiting", "failed"].includes(model.state);
    row.cells.do.classList.toggle("off", !operates);
    row.buttons.load.hidden = !goes;
    row.buttons.unload.hidden = goes;
    row.buttons.load.disabled = !model.enabled;
    row.buttons.pin.dataset.do = model.pinned ? "unpin" : "pin";
    put(row.buttons.load, "Load");
    put(row.buttons.unload, "Unload");
    put(row.buttons.pin, model.pinned ? "Unpin" : "Pin");
    for (const button of Object.values(row.buttons)) button.setAttribute("aria-label", `${button.textContent} ${model.name}`);
  }

  /** How long ago, once a second. `now`: the gateway's clock. */
  age(now) {
    for (const row of this.rows.values()) put(row.since, row.at ? `${span(now - row.at)} ago` : "");
  }

  choose(name, focus = true) {
    this.chosen = name;
    for (const [one, row] of this.rows) {
      const is_it = one === name;
      row.main.tabIndex = is_it ? 0 : -1;
      row.main.classList.toggle("chosen", is_it);
      for (const button of Object.values(row.buttons)) button.tabIndex = is_it ? 0 : -1;
      if (is_it && focus) row.main.focus();
    }
  }

  move(steps) {
    const at = this.models.findIndex((model) => model.name === this.chosen);
    const to = this.models[Math.min(this.models.length - 1, Math.max(0, at + steps))];
    if (to) this.choose(to.name);
  }

  model(name) {
    return this.models.find((one) => one.name === name);
  }

  toggle(name) {
    const before = this.open;
    this.close();
    this.choose(name, false);
    if (before === name) return;
    this.open = name;
    const row = this.rows.get(name);
    row.more.hidden = false;
    row.main.setAttribute("aria-expanded", "true");
    this.fillMore(name);
  }

  close() {
    const row = this.rows.get(this.open);
    this.open = "";
    if (!row) return;
    row.more.hidden = true;
    row.main.removeAttribute("aria-expanded");
  }

  fillMore(name) {
    const row = this.rows.get(name);
    const model = this.model(name);
    if (!row || !model) return;
    const found = this.decisions(name).slice(0, LEFT);
    const facts = [
      ["Priority", model.priority.toLowerCase()],
      ["Where", model.devices.join(", ") || "not loaded"],
      ["Declared", `${mb(model.declared_mb)} MB`],
      ["Measured", model.measured_mb === null ? "not yet" : `${mb(model.measured_mb)} MB`],
      ["Latency", model.count ? `p50 ${ms(model.p50)} ms, p95 ${ms(model.p95)} ms of the last ${model.count}` : "no request yet"],
    ];
    const key = JSON.stringify([facts, model.why, found.map((one) => one[0])]);
    if (row.key === key) return;
    row.key = key;
    row.more.firstChild.replaceChildren(
      make("p", { className: "why-whole", textContent: model.why }),
      make("dl", { className: "facts" }, ...facts.map(([what, text]) => make("div", {}, make("dt", { textContent: what }), make("dd", { textContent: text })))),
      make("ol", { className: "its" }, ...found.map(([, at, , , text]) => make("li", {}, make("time", { textContent: clock(at) }), ` ${text}`))));
  }
}
