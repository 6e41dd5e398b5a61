// Calls of the server's routes; errors are shown as the server words them.
import { find, make } from "./dom.js";
import { said, saidIn } from "./said.js";
import { t } from "./text.js";

/** Error that the server explained as problem details (RFC 9457), or that the connection failed. */
export class Problem extends Error {
  constructor(title, detail, status) {
    super(detail || title);
    Object.assign(this, { title, detail, status });
  }
}

function address(path, query) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function problemOf(response) {
  try {
    const { title, detail, remedy } = await response.json();
    return new Problem(said(title) ?? t("error.title"), [detail, remedy].filter(Boolean).join(" "), response.status);
  } catch {
    return new Problem(t("error.title"), t("error.status", { status: String(response.status) }), response.status);
  }
}

/** Send a request and return the response; `json` or `body` is what it carries.
 * Throws a `Problem` if the server refuses or cannot be reached. */
export async function send(path, { method, query, json, body, headers = {}, signal } = {}) {
  const all = { Accept: "application/json", ...headers };
  const token = find('meta[name="csrf"]')?.content;
  if (token) all["X-CSRF-Token"] = token;
  if (json !== undefined) all["Content-Type"] = "application/json";
  const verb = method ?? (json !== undefined || body !== undefined ? "POST" : "GET");
  let response;
  try {
    response = await fetch(address(path, query), { method: verb, headers: all, body: json === undefined ? body : JSON.stringify(json), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(t("error.offline"), "", 0);
  }
  if (response.status === 401 && location.pathname !== "/sign-in") location.assign(`/sign-in?next=${encodeURIComponent(location.pathname)}`);
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** Send a request and return the answer as an object; null if it has no content. */
export async function call(path, options) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

/** Show a sentence at the top of the page; screen readers read it. */
export function say(sentence, kind = "good", ...actions) {
  const close = make("button", { type: "button", class: "link", onclick: () => notice.remove() }, t("close"));
  const notice = make("div", { class: `notice row ${kind}` }, typeof sentence === "string" ? make("p", {}, sentence) : sentence, make("span", { class: "row middle" }, ...actions, close));
  find("#messages-shown").replaceChildren(notice);
  return notice;
}

export function sayProblem(problem) {
  if (problem.name === "AbortError") return;
  say(saidIn("p", problem.message || problem.title), "bad");
}

/** Run an action of a button: the button is off meanwhile, and an error is shown. */
export async function act(button, action) {
  if (button) button.disabled = true;
  try {
    return await action();
  } catch (problem) {
    sayProblem(problem);
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}
