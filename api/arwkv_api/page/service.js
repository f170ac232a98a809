// Requests to the service, with the tab's key if it needs one.

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

async function request(path, signal, method = "GET") {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, { method, signal, headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401) {
    await askForKey(signal);
    return request(path, signal, method);
  }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? answer.statusText);
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

// Calls `work` now and then every `interval` ms until the user leaves the view; a hidden tab waits. `said` gets each
// failure, and null after a success, so that a service may restart.
export async function repeat(interval, signal, work, said) {
  while (!signal.aborted) {
    try {
      if (!document.hidden) {
        await work();
        said(null);
      }
    } catch (error) {
      if (!signal.aborted) said(error);
    }
    await new Promise((resolve) => setTimeout(resolve, interval));
  }
}
