// The page: takes what the gateway says and shows it; buttons and keys.

import { call, follow, reopen, token } from "./live.js";
import { showDevices } from "./memory.js";
import { ModelTable } from "./models.js";
import { count, make, put } from "./text.js";
import { Timeline } from "./timeline.js";
import { Trial } from "./trial.js";
import { showWaiting } from "./waiting.js";

const by = (id) => document.getElementById(id);
const state = { devices: [], models: [], waiting: [], totals: null, trouble: "", you: { name: "", role: "viewer" } };
const PARTS = ["devices", "models", "waiting", "totals", "trouble", "you", "whole_from"];
const changed = new Set(); // parts that are not shown yet
let drawing = 0;
let skew = 0; // of the gateway's clock, in seconds
let said = 0;
const now = () => Date.now() / 1000 + skew;

const timeline = new Timeline(by("lanes"), by("decisions"), by("more"));
const table = new ModelTable(by("rows"), act, (name) => timeline.about(name));
const trial = new Trial();

// ---------------------------------------------------------------- what comes in

function take(message) {
  skew = message.at - Date.now() / 1000;
  if (message.whole) Object.assign(state, { devices: [], models: [], waiting: [], totals: null });
  for (const name of PARTS) {
    if (name in message) state[name] = message[name];
    if (name in message || message.whole) changed.add(name);
  }
  timeline.add(message.decisions, Boolean(message.whole));
  drawing ||= requestAnimationFrame(show); // once for all that has come by then; never where the page is not seen
}

function show() {
  const order = new Map(state.models.map((model, index) => [model.name, index]));
  const has = (name) => changed.has(name);
  if (has("you")) {
    put(by("name"), `${state.you.name === "local" ? "this machine" : state.you.name}, `);
    put(by("role"), state.you.role);
  }
  if (has("devices") || has("models")) showDevices(by("devices"), state.devices, order);
  if (has("models")) {
    table.rights = state.you.role;
    table.show(state.models);
    trial.offer(state.models, state.you.role !== "viewer");
    by("none").hidden = state.models.length > 0;
  }
  if (has("totals")) showTotals(state.totals);
  if (has("waiting") || state.waiting.length) showWaiting(by("waiting"), state.waiting, order, now());
  timeline.show(now(), state.models, order, state.whole_from ?? 0);
  table.age(now());
  linked(state.trouble ? "broker" : "live", state.trouble ? "no broker" : "live");
  trouble(state.trouble ? `The broker does not answer. What is shown is what was last seen; it goes on by itself. (${state.trouble})` : "");
  changed.clear();
  drawing = 0;
  document.title = state.trouble ? "No broker – Model Zoo" : "Model Zoo";
}

const TOTALS = [["loaded", "loaded"], ["rate", "requests/s"], ["running", "running"], ["waiting", "waiting"], ["leases", "leases"], ["clients", "clients"]];

function showTotals(totals) {
  if (!totals) return by("totals").replaceChildren();
  const texts = { ...totals, loaded: `${totals.loaded} / ${totals.registered}`, rate: totals.rate.toFixed(1) };
  const figures = TOTALS.map(([key, label]) => make("div", { data: { total: key, zero: !totals[key] } }, make("dt", { textContent: label }), make("dd", { textContent: String(texts[key]) })));
  if (totals.errors) figures.push(make("div", { className: "bad" }, make("dt", { textContent: "internal errors" }), make("dd", { textContent: count(totals.errors) })));
  if (totals.stopping) figures.push(make("div", { className: "bad" }, make("dt", { textContent: "broker" }), make("dd", { textContent: "stopping" })));
  by("totals").replaceChildren(...figures);
}

function gone(text) {
  cancelAnimationFrame(drawing);
  drawing = 0;
  linked("gone", "not connected");
  trouble(`Not connected: ${text}. What is shown is what was last seen; it goes on by itself.`);
}

function linked(kind, text) {
  by("link").dataset.link = kind;
  put(by("link"), text);
  document.body.classList.toggle("old", kind !== "live");
}

function trouble(text) {
  by("trouble").hidden = !text;
  put(by("trouble"), text);
}

/** Asks for a token, because none, or a wrong one, was sent. */
function askToken(text, isWrong) {
  linked("wait", "token needed");
  trouble("");
  return enter(isWrong ? "The gateway does not know this token, or not any more." : "Who may look is in the gateway's file of tokens.", text);
}

/** Gives a promise of the dialog's end; what was entered is kept. `needed`: why, in which case there is no way round. */
function enter(why, needed = "") {
  put(by("enter-why"), why);
  by("enter-why").title = needed;
  by("leave").hidden = Boolean(needed);
  by("forget").hidden = Boolean(needed) || !token.get();
  by("enter").dataset.needed = needed;
  by("enter").returnValue = "no";
  by("token").value = "";
  by("enter").showModal();
  by("token").focus();
  return new Promise((done) => by("enter").addEventListener("close", () => {
    const chosen = by("enter").returnValue;
    if (chosen === "forget") token.set("");
    else if (chosen === "yes") token.set(by("token").value.trim());
    by("token").value = "";
    done(chosen !== "no");
  }, { once: true }));
}

// ---------------------------------------------------------------- what is done

const CALLS = { load: "models/preload", unload: "models/unload", pin: "models/pin", unpin: "models/unpin" };
const DONE = { load: "is loaded", unload: "is unloaded", pin: "is pinned", unpin: "is unpinned" };

async function act(what, name) {
  if (state.you.role !== "operator") return say(`${what} is for operators; you are a ${state.you.role}`, true);
  if (what === "unload" && !(await sure(`Unload ${name}?`))) return;
  say(`${what} ${name} …`);
  try {
    const answer = await call(`${CALLS[what]}?model_name=${encodeURIComponent(name)}`);
    say(answer.was_loaded === false ? `${name} was not loaded` : `${name} ${DONE[what]}`);
  } catch (e) {
    say(`${what} ${name}: ${e.message}`, true);
  }
}

function sure(question) {
  put(by("question"), question);
  by("confirm").returnValue = "no";
  by("confirm").showModal();
  return new Promise((done) => by("confirm").addEventListener("close", () => done(by("confirm").returnValue === "yes"), { once: true }));
}

function say(text, bad = false) {
  clearTimeout(said);
  by("said").hidden = false;
  by("said").classList.toggle("bad", bad);
  put(by("said"), text);
  said = setTimeout(() => { by("said").hidden = true; }, bad ? 12000 : 5000);
}

// ---------------------------------------------------------------- keys, light and dark

function pressed(event) {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName)) return;
  const model = table.model(table.chosen);
  const keys = {
    ArrowDown: () => table.move(1),
    ArrowUp: () => table.move(-1),
    l: () => model && act("load", model.name),
    u: () => model && act("unload", model.name),
    p: () => model && act(model.pinned ? "unpin" : "pin", model.name),
    t: () => { if (model) by("try-model").value = model.name; by("picture").focus(); by("picture").click(); },
    d: turn,
    "?": () => by("help").showModal(),
    Escape: () => { table.close(); by("said").hidden = true; },
  };
  if (event.key === "Enter" && at.classList?.contains("row")) keys.Enter = () => table.toggle(table.chosen);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!keys[key]) return;
  event.preventDefault();
  keys[key]();
}

const THEMES = ["auto", "light", "dark"];

function turn() {
  dress(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3]);
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  put(by("theme"), theme);
  try { localStorage.setItem("zoo-theme", theme); } catch { /* a private window */ }
}

dress(THEMES.find((theme) => theme === localStorage.getItem("zoo-theme")) ?? "auto");
by("theme").addEventListener("click", turn);
by("keys").addEventListener("click", () => by("help").showModal());
by("enter").addEventListener("cancel", (event) => by("enter").dataset.needed && event.preventDefault());
by("forget").addEventListener("click", () => by("enter").close("forget"));
by("leave").addEventListener("click", () => by("enter").close("no"));
by("you").addEventListener("click", async () => { if (await enter("Look, and press, with the rights of another token.")) reopen(); });
document.addEventListener("keydown", pressed);
setInterval(() => table.age(now()), 1000);
follow(take, gone, askToken);
