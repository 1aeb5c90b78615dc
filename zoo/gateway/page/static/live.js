// One stream of lines of JSON; it is opened again whenever it ends or falls silent.

const SILENT_MS = 6000; // the gateway says something each second
const AGAIN_MS = [500, 1000, 2000, 3000];
const KEY = "zoo-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text),
};

const headers = () => (token.get() ? { Authorization: `Bearer ${token.get()}` } : {});

/** A call of the gateway. Gives its JSON; raises an Error with its text, and its `status`. */
export async function call(path, how = {}) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", ...how, headers: { ...headers(), ...how.headers } });
  } catch {
    throw new Error("the gateway does not answer");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.error || `status ${answer.status}`), { status: answer.status });
  return said;
}

let current = null; // of the stream
let again = false;

/** Opens the stream anew, as after another token. */
export function reopen() {
  again = true;
  current?.abort();
}

/**
 * Follows the zoo for ever.
 * `take(message)`: a message. `gone(text)`: the gateway cannot be reached. `ask(text)`: gives a token, some time.
 */
export async function follow(take, gone, ask) {
  for (let tries = 0; ; tries++) {
    try {
      await read((message) => {
        tries = 0;
        take(message);
      });
      gone("the gateway has ended the connection");
    } catch (e) {
      if (again) {
        again = false;
        tries = -1;
        continue;
      }
      if (e.status === 401 || e.status === 403) {
        await ask(e.message, e.status === 401 && token.get() !== "");
        tries = -1;
        continue;
      }
      gone(e.message);
    }
    await new Promise((done) => setTimeout(done, AGAIN_MS[Math.min(Math.max(tries, 0), AGAIN_MS.length - 1)]));
  }
}

async function read(take) {
  const stop = (current = new AbortController());
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), SILENT_MS);
  };
  heard();
  try {
    const answer = await fetch("page/live", { headers: headers(), signal: stop.signal, cache: "no-store" });
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw Object.assign(new Error(said.error || `status ${answer.status}`), { status: answer.status });
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) take(JSON.parse(line));
    }
  } catch (e) {
    if (e.status) throw e;
    throw new Error(stop.signal.aborted ? "the gateway has fallen silent" : "the gateway does not answer");
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}
