// The last hour: a lane for each model that was loaded or asked for, and the decisions in words.

import { clock, make, tint } from "./text.js";

const HOUR = 3600;
const FEW = 12; // decisions at first
const MANY = 200;
const ENDS = new Set(["evicted", "draining", "crashed", "killed", "load failed", "dropped"]);
const BAD = new Set(["crashed", "killed", "load failed", "memory stuck", "out of memory", "overdrawn", "unread", "broker gone"]);
const MOST = 4000; // decisions that are kept
const LEAST = 2; // seconds between drawings

/** When each model was loading or loaded: name → [{from, to, load, end, text}], seconds of Unix time; pure. */
export function spans(decisions, models, now, wholeFrom) {
  const found = new Map();
  const open = new Map();
  const start = Math.max(now - HOUR, wholeFrom);
  const lane = (name) => found.get(name) ?? found.set(name, []).get(name);
  const end = (name, at, kind, text) => {
    const one = open.get(name);
    open.delete(name);
    if (one) Object.assign(one, { to: at, end: kind, text });
    else if (!lane(name).length && kind !== "load failed") lane(name).push({ from: start, to: at, load: start, end: kind, text });
  };
  for (const [, at, name, kind, text] of decisions) {
    if (kind === "broker gone" || kind === "broker started") for (const one of [...open.keys()]) end(one, at, kind, text);
    else if (!name) continue;
    else if (kind === "loading") {
      if (!open.has(name)) {
        const one = { from: at, to: now, load: now, end: "", text };
        lane(name).push(one);
        open.set(name, one);
      }
    } else if (kind === "loaded") {
      const one = open.get(name);
      if (one && one.load === now) one.load = at;
    } else if (ENDS.has(kind)) end(name, at, kind, text);
  }
  for (const model of models) {
    if (model.workers > 0 && !open.has(model.name)) lane(model.name).push({ from: lane(model.name).at(-1)?.to ?? start, to: now, load: start, end: "", text: "loaded" });
  }
  return found;
}

/** A load and its reason as one line; pure. */
export function inWords(decisions) {
  const open = new Map();
  const told = [];
  for (const one of decisions) {
    const [number, at, name, kind, text] = one;
    const begun = open.get(name);
    if (kind === "loading") open.set(name, told.length);
    else if (begun !== undefined && ["loaded", "load failed"].includes(kind)) {
      const why = told[begun];
      told[begun] = null;
      open.delete(name);
      told.push([number, at, name, kind, why ? `${text}; ${why[4]}` : text]);
      continue;
    }
    told.push(one);
  }
  return told.filter(Boolean);
}

export class Timeline {
  constructor(lanes, list, more) {
    this.lanes = lanes;
    this.list = list;
    this.more = more;
    this.decisions = [];
    this.drawn = 0;
    this.many = false;
    more.addEventListener("click", () => {
      this.many = !this.many;
      this.listed = -1;
      this.showList();
    });
  }

  add(decisions, whole) {
    this.decisions = (whole ? decisions : this.decisions.concat(decisions)).slice(-MOST);
    if (decisions.length || whole) this.drawn = Math.min(this.drawn, 1);
  }

  about(name) {
    return inWords(this.decisions.filter((one) => one[2] === name)).reverse();
  }

  /** Draws at most every two seconds, and at least every ten. */
  show(now, models, order, wholeFrom) {
    const first = this.decisions.findIndex((one) => one[1] >= now - HOUR);
    if (first) this.decisions = first < 0 ? [] : this.decisions.slice(first);
    const since = now - this.drawn;
    if (this.drawn > 1 ? since < 10 : this.drawn === 1 && now - (this.at ?? 0) < LEAST) return;
    this.drawn = this.at = now;
    const found = spans(this.decisions, models, now, wholeFrom);
    const names = models.map((model) => model.name).filter((name) => found.has(name));
    const lanes = names.map((name) => lane(name, found.get(name), now, order));
    const lost = Math.min(1, (wholeFrom - now + HOUR) / HOUR);
    this.lanes.style.setProperty("--lost", String(Math.max(0, lost)));
    this.lanes.title = lost > 0 ? `What was decided before ${clock(wholeFrom)} is not known any more.` : "";
    this.lanes.replaceChildren(...lanes, axis(now), ...(lanes.length ? [] : [make("p", { className: "empty", textContent: "No model was loaded in the last hour." })]));
    this.showList();
  }

  showList() {
    const last = this.decisions.at(-1)?.[0] ?? 0;
    const key = `${last} ${this.decisions.length} ${this.many}`;
    if (this.listed === key) return;
    this.listed = key;
    const all = inWords(this.decisions);
    const shown = all.slice(-(this.many ? MANY : FEW)).reverse();
    this.list.replaceChildren(...shown.map(([, at, name, kind, text]) => make("li", { data: { kind, bad: BAD.has(kind) } },
      make("time", { textContent: clock(at) }),
      make("span", { className: "who", textContent: name || "broker" }),
      make("span", { className: "what", textContent: text }))));
    const left = all.length - FEW;
    this.more.hidden = left <= 0;
    this.more.textContent = this.many ? "Show fewer" : `Show ${Math.min(left, MANY - FEW)} more`;
  }
}

function lane(name, all, now, order) {
  const at = (t) => Math.min(1, Math.max(0, (t - now + HOUR) / HOUR));
  const track = make("div", { className: "track" });
  for (const one of all) {
    if (one.to < now - HOUR) continue;
    const left = at(one.from);
    const bar = make("i", { className: "span", title: `${clock(one.from)} to ${one.end ? clock(one.to) : "now"}: ${one.text}`, data: { end: one.end, bad: BAD.has(one.end) }, vars: { "--l": String(left), "--w": String(at(one.to) - left) } });
    const loading = at(Math.min(one.load, one.to)) - left;
    if (loading > 0.0005) bar.append(make("i", { className: "loading", vars: { "--w": String(loading / Math.max(1e-9, at(one.to) - left)) } }));
    track.append(bar);
  }
  return make("div", { className: "lane", data: { model: name }, vars: tint(order.get(name) ?? 0) }, make("span", { className: "who", textContent: name }), track);
}

function axis(now) {
  const marks = make("div", { className: "track marks" });
  for (let t = Math.ceil((now - HOUR) / 600) * 600; t <= now; t += 600) {
    marks.append(make("span", { className: "mark", textContent: clock(t, false), vars: { "--l": String((t - now + HOUR) / HOUR) } }));
  }
  return make("div", { className: "lane axis" }, make("span", { className: "who" }), marks);
}
