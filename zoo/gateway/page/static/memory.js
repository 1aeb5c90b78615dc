// A bar for each device: its budget cut into models, the budget's line, and what other programs use.

import { gb, make, mb, tint } from "./text.js";

const BESIDE = 0.3; // of the bar, at most, for what lies beyond the budget
const LEAST = 0.06; // and at least, where there is any

export function showDevices(box, devices, order) {
  box.replaceChildren(...devices.map((device) => deviceBar(device, order)));
}

function deviceBar(device, order) {
  const { budget_mb: budget, used_mb: used, others_mb: others, total_mb: total, limit_mb: limit } = device;
  const beyond = Math.max(0, (total ?? 0) - Math.max(budget, used));
  const part = beyond ? Math.min(BESIDE, Math.max(LEAST, beyond / (total ?? 1))) : 0;
  const inside = make("div", { className: "inside", vars: { "--part": String(1 - part) } });
  const place = ([kind, name]) => (kind === "model" ? (order.get(name) ?? 0) : 1e6);
  for (const [kind, name, size, cells] of device.pieces.toSorted((one, other) => place(one) - place(other))) {
    if (!cells) continue;
    inside.append(piece(kind, name, size, cells, order));
  }
  const taken = Math.max(0, Math.min(beyond, others - Math.max(0, budget - limit)));
  const rest = make("div", { className: "beyond", vars: { "--part": String(part) }, title: `beyond the budget: ${gb(beyond)} of the device` });
  if (taken > 0) {
    const share = make("div", { className: "piece others", vars: { "--w": String(taken / beyond) }, title: `other programs: ${gb(others)}` });
    share.append(make("span", { textContent: "others" }));
    rest.append(make("div", { className: "gap" }), share);
  }
  const bar = make("div", { className: "bar", role: "img", aria: { label: inWords(device) } }, inside, part ? rest : null);
  const line = make("div", { className: "line", vars: { "--at": String(1 - part) } }, make("span", { textContent: `budget ${gb(budget)}` }));
  const share = budget ? Math.round((100 * used) / budget) : 0;
  return make("div", { className: "device", data: { device: device.name } },
    make("div", { className: "device-head" },
      make("strong", { textContent: device.name }),
      make("span", { className: "figure", textContent: `${mb(used)} of ${mb(budget)} MB charged, ${share} %` }),
      make("span", { className: "others-note", textContent: others > 0 ? `others use ${gb(others)}${total ? ` of ${gb(total)}` : ""}` : total ? `device ${gb(total)}` : "" }),
      device.overrun_mb > 0 ? make("span", { className: "over", textContent: `${mb(device.overrun_mb)} MB too much` }) : null),
    bar, line);
}

function piece(kind, name, size, cells, order) {
  const label = { free: "free", ending: "ending", others: "others" }[kind] ?? name;
  const made = make("div", { className: `piece ${kind}`, title: `${label}: ${mb(size)} MB`, vars: { "--w": String(cells / 1000), ...(kind === "model" ? tint(order.get(name) ?? 0) : {}) }, data: { model: name, mb: size } });
  made.append(make("span", { textContent: label }), make("small", { textContent: mb(size) }));
  return made;
}

function inWords(device) {
  const models = device.pieces.filter(([kind]) => kind === "model").map(([, name, size]) => `${name} ${mb(size)} MB`);
  return `${device.name}: ${mb(device.used_mb)} of ${mb(device.budget_mb)} MB charged. ${models.join(", ") || "No model"}. Others: ${mb(device.others_mb)} MB.`;
}
