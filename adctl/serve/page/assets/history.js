// Tab "History": search the verdicts, page by page.
import { act, call, sayProblem } from "./api.js";
import { find, make } from "./dom.js";
import { listen } from "./events.js";
import { mark, openDetails, thumbnail } from "./parts.js";
import { number, t, time } from "./text.js";

const PAGE = 50;
const form = find("#filters");
let cursor = null;
let shown = 0;

function filters() {
  const found = {};
  for (const [name, value] of new FormData(form)) {
    if (value) found[name] = name === "since" || name === "until" ? new Date(value).toISOString() : value;
  }
  return found;
}

async function read(more) {
  const answer = await call("/v1/history", { query: { ...filters(), limit: PAGE, cursor: more ? cursor : null } });
  const rows = answer.verdicts.map(row);
  if (more) find("#rows").append(...rows);
  else find("#rows").replaceChildren(...rows);
  shown = (more ? shown : 0) + answer.verdicts.length;
  cursor = answer.cursor;
  find("#more").hidden = !cursor;
  find("#none").hidden = shown > 0;
  find("#count").textContent = t(cursor ? "history.first" : "history.all", { count: shown });
}

function row(part) {
  const open = make("button", { type: "button", class: "link", onclick: () => openDetails(part) }, part.name || t("history.open"));
  const cell = (name, ...children) => make("td", { "data-name": name }, ...children);
  const optional = (name, text) => make("td", { "data-name": name, class: text ? "" : "absent" }, text || "–");
  return make("tr", {},
    make("td", { class: "thumb" }, thumbnail(part)),
    cell(t("time"), time(part.time)),
    cell(t("verdict"), mark(part.verdict)),
    optional(t("kind.named"), part.kind),
    make("td", { class: "number", "data-name": t("score") }, number(part.score)),
    cell(t("model"), part.model),
    optional(t("lot"), part.lot),
    cell(t("name"), open),
    optional(t("reviewed"), part.review && t(`label.${part.review.label}`)));
}

function remember() {
  history.replaceState(null, "", `?${new URLSearchParams(new FormData(form))}`);
}

async function start() {
  const models = await call("/v1/models");
  form.model.append(...models.map((model) => make("option", { value: model.name }, model.name)));
  for (const [name, value] of new URLSearchParams(location.search)) if (form.elements[name]) form.elements[name].value = value;
  await read(false);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  remember();
  act(find("button", form), () => read(false));
});
form.addEventListener("reset", () => setTimeout(() => { remember(); act(null, () => read(false)); }));
find("#more").addEventListener("click", (event) => act(event.target, () => read(true)));
start().catch(sayProblem);
listen({});
