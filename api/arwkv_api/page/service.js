// Asking the service, with the tab's key where it needs one.

export const enc = encodeURIComponent;

export async function ask(path, signal, method = "GET") {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, { method, signal, headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401) {
    await askForKey(signal);
    return ask(path, signal, method);
  }
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.detail ?? answer.statusText);
  return document;
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

// Calls `work` now and again every `interval` ms until the view is left; a hidden tab waits.
export async function repeat(interval, signal, work) {
  while (!signal.aborted) {
    if (!document.hidden) await work();
    await new Promise((resolve) => setTimeout(resolve, interval));
  }
}
