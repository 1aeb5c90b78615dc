// Try it: a picture, a model, and the picture with the model's answer drawn on it.

import { call } from "./live.js";
import { make, ms, put } from "./text.js";

export class Trial {
  constructor() {
    const by = (id) => document.getElementById(id);
    this.form = by("try");
    this.input = by("picture");
    this.drop = by("drop");
    this.text = by("drop-text");
    this.select = by("try-model");
    this.button = by("ask");
    this.answer = by("answer");
    this.file = null;
    this.allowed = false;
    this.input.addEventListener("change", () => this.take(this.input.files[0]));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    for (const kind of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        event.preventDefault();
        this.drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.take(event.dataTransfer?.files[0]);
      });
    }
    document.addEventListener("paste", (event) => this.take([...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"))));
  }

  /** The models that can be asked. */
  offer(models, allowed) {
    this.allowed = allowed;
    const names = models.filter((model) => model.enabled).map((model) => model.name);
    if (this.names !== names.join("\n")) {
      this.names = names.join("\n");
      const chosen = this.select.value;
      this.select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
      if (names.includes(chosen)) this.select.value = chosen;
    }
    this.ready();
  }

  ready() {
    this.button.disabled = !this.allowed || !this.file || this.busy;
    this.input.disabled = !this.allowed;
    if (!this.allowed) put(this.text, "Your token may look, and not ask models.");
    else if (!this.file) this.text.replaceChildren("Drop a picture here, paste it, or ", make("u", { textContent: "choose a file" }));
  }

  take(file) {
    if (!file || !this.allowed) return;
    this.file = file;
    put(this.text, file.name || "a pasted picture");
    this.ready();
    this.ask();
  }

  async ask() {
    if (!this.file || this.busy || !this.allowed) return;
    const name = this.select.value;
    this.busy = true;
    this.ready();
    this.answer.replaceChildren(make("p", { className: "note busy", textContent: `Asking ${name} …` }));
    try {
      this.show(name, await call(`page/try/${encodeURIComponent(name)}`, { body: this.file, headers: { "Content-Type": "application/octet-stream" } }));
    } catch (e) {
      this.answer.replaceChildren(make("p", { className: "failed", textContent: e.message }));
    } finally {
      this.busy = false;
      this.ready();
    }
  }

  show(name, found) {
    const spent = Object.entries(found.timings).filter(([, seconds]) => seconds >= 0.0005).map(([what, seconds]) => `${what} ${ms(seconds)}`);
    this.answer.replaceChildren(
      make("img", { src: found.picture, alt: `The picture with the answer of ${name}: ${found.lines.join("; ")}` }),
      found.stand_in ? make("p", { className: "failed", textContent: "The model runs on random stand-in weights: this answer means nothing." }) : "",
      make("ul", {}, ...found.lines.map((line) => make("li", { textContent: line })), ...(found.more ? [make("li", { className: "note", textContent: `and ${found.more} more` })] : [])),
      make("p", { className: "note", textContent: `${name}, request ${found.request}. Milliseconds: ${spent.join(", ") || "not known"}` }));
  }
}
