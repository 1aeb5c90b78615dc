// Who waits for what, and why.

import { make, span, tint } from "./text.js";

export function showWaiting(list, waiting, order, now) {
  if (!waiting.length) {
    list.replaceChildren(make("li", { className: "empty", textContent: "No request waits." }));
    return;
  }
  list.replaceChildren(...waiting.map((row) => {
    const many = row.requests === 1 ? "1 request" : `${row.requests} requests`;
    const age = row.requests && row.oldest ? `, for ${span(now - row.oldest)}` : "";
    const whose = row.clients.map((one) => `${one.client || "a client"} (${one.pid})${one.requests > 1 ? ` × ${one.requests}` : ""}`);
    return make("li", { data: { model: row.model }, vars: tint(order.get(row.model) ?? 0) },
      make("p", {}, make("i", { className: "chip" }), make("strong", { textContent: row.model }), make("span", { className: "many", textContent: row.requests ? many + age : "loads for no request" })),
      whose.length ? make("p", { className: "whose", textContent: whose.join(", ") }) : null,
      make("p", { className: "because", textContent: row.why }));
  }));
}
