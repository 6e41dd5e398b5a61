// The stream of the server's events: it is opened again when the connection was lost, and the page says so meanwhile.
import { find } from "./dom.js";
import { t } from "./text.js";

const RETRY = 2000;

/** Listen to events by name; `again` is called after each connection, so that what was missed can be read. */
export function listen(handlers, again = () => {}) {
  let source;
  let retry;
  const open = () => {
    source = new EventSource("/v1/events");
    source.addEventListener("open", () => { show("on"); again(); });
    source.addEventListener("error", () => {
      show("off");
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      clearTimeout(retry);
      retry = setTimeout(open, RETRY);
    });
    for (const [name, handler] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
    }
  };
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });
  open();
}

function show(state) {
  const mark = find("#connection");
  if (mark.dataset.state === state) return;
  mark.dataset.state = state;
  mark.textContent = t(`connection.${state}`);
}
