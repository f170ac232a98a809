// Requests to the service, with the tab's key if it needs one.

const AGAIN_MS = 2000;

export const enc = encodeURIComponent;

// The full address of a path of the service, relative to the page's own address: there may be a prefix.
export const address = (path) => new URL(path, document.baseURI).href;

export async function ask(path, signal, method = "GET") {
  return (await request(path, signal, method)).json();
}

// Fetches a file with the tab's key, and lets the browser save it under `name`.
export async function save(path, name) {
  const url = URL.createObjectURL(await (await request(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}

// The service's answer; an error has its `status`. `more` may hold `headers` and `body`.
export async function request(path, signal, method = "GET", more = {}) {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, { method, signal, ...more, headers: { ...more.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  if (answer.status === 401) {
    await askForKey(signal);
    return request(path, signal, method, more);
  }
  if (!answer.ok) throw Object.assign(new Error((await answer.json().catch(() => ({}))).detail ?? answer.statusText), { status: answer.status });
  return answer;
}

let asking = null;

function askForKey(signal) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("key", document.getElementById("key").value);
      asking = null;
      resolve();
    }, { once: true });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  signal?.throwIfAborted();
  return asking;
}

// Calls `work` each time the service says that something of one of these kinds has changed, until the user leaves the
// view. `said` gets each failure, and null after a success, so that a service may restart.
export async function follow(kinds, signal, work, said) {
  while (!signal.aborted) {
    try {
      for await (const event of events(signal)) {
        if (event && !kinds.includes(event)) continue;
        if (event) await work();
        said(null);
      }
    } catch (error) {
      if (!signal.aborted) said(error);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

// The kinds of changes as the service sends them; a browser's own EventSource cannot send a key.
// Ends when the user leaves the page: a page that the browser keeps for the way back would hold one of its few
// connections to the service.
async function* events(signal) {
  const left = new AbortController();
  addEventListener("pagehide", () => left.abort(), { once: true, signal });
  const answer = await request("v1/events", AbortSignal.any([signal, left.signal]));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the service ended the connection");
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const one of whole) yield one.match(/^event: (.*)$/m)?.[1] ?? "";
  }
}
