// Page of `adctl runs view`: the table of runs, their curves, comparison and lineage. It changes nothing.
import { act, call, Problem, sayProblem } from "./api.js";
import { lines } from "./charts.js";
import { facts, find, make } from "./dom.js";
import { number, t } from "./text.js";

const form = find("#filters");
const NEVER_COMPARED = new Set(["id", "name", "folder", "started", "finished", "model_sha256", "metrics", "settings"]);
const MOST_COMPARED = 6;
let runs = [];
let columns = [];
let sort = "-id";
const chosen = new Map();

const NONE = "–";
const DATE = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d/; // as the folders write it; the zone is that of the machine

const valueOf = (run, name) => run[name] ?? run.metrics[name] ?? run.settings[name] ?? null;

function shown(value) {
  if (value === null || value === undefined || value === "") return NONE;
  if (typeof value === "number") return number(value);
  if (DATE.test(value)) return value.replace(DATE, "$1 $2").slice(0, 16);
  if (Array.isArray(value)) return value.map(shown).join(", ") || NONE;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

async function read() {
  const query = { where: form.where.value.trim(), limit: form.limit.value, sort };
  const answer = await call("/data/runs", { query });
  runs = answer.runs;
  if (!columns.length) columns = answer.columns;
  history.replaceState(null, "", `?${new URLSearchParams({ ...query, columns: columns.join(",") })}`);
  find("#count").textContent = t("runs.count", { count: runs.length });
  find("#none").hidden = runs.length > 0;
  offerColumns(answer.known);
  showTable();
}

function offerColumns(known) {
  const all = [...new Set([...columns, ...known])];
  find("#columns").replaceChildren(...all.map((name) => make("label", {}, make("input", {
    type: "checkbox", checked: columns.includes(name), onchange: (event) => {
      columns = event.target.checked ? [...columns, name] : columns.filter((one) => one !== name);
      showTable();
    },
  }), name)));
}

function showTable() {
  find("#heads").replaceChildren(make("th", { scope: "col" }, t("runs.compare")), ...columns.map(head));
  find("#rows").replaceChildren(...runs.map(row));
}

function head(name) {
  const direction = sort === name ? "ascending" : sort === `-${name}` ? "descending" : null;
  const arrow = { ascending: " ▲", descending: " ▼" }[direction] ?? "";
  return make("th", { scope: "col", "aria-sort": direction, class: isNumber(name) ? "number" : "" },
    make("button", { type: "button", onclick: () => { sort = sort === `-${name}` ? name : `-${name}`; act(null, read); } }, name + arrow));
}

const isNumber = (name) => runs.some((run) => typeof valueOf(run, name) === "number");

function row(run) {
  const check = make("input", { type: "checkbox", checked: chosen.has(run.id), "aria-label": t("runs.compare_name", { name: run.name }), onchange: (event) => choose(run, event.target) });
  return make("tr", {}, make("td", { "data-name": t("runs.compare") }, check), ...columns.map((name) => {
    const value = valueOf(run, name);
    if (name === "name") return make("th", { scope: "row" }, make("button", { type: "button", class: "link", onclick: () => act(null, () => open(run)) }, run.name));
    const kinds = [isNumber(name) ? "number" : "", DATE.test(value) ? "date" : "", shown(value) === NONE ? "absent" : ""].join(" ").trim();
    return make("td", { "data-name": name, class: kinds }, shown(value));
  }));
}

function choose(run, box) {
  if (!box.checked) chosen.delete(run.id);
  else if (chosen.size >= MOST_COMPARED) {
    box.checked = false;
    sayProblem(new Problem(t("runs.too_many", { count: MOST_COMPARED })));
  } else chosen.set(run.id, run);
  act(null, compare);
}

async function compare() {
  const selected = [...chosen.values()];
  find("#comparison").hidden = selected.length < 2;
  if (selected.length < 2) return;
  const histories = await Promise.all(selected.map((run) => call(`/data/runs/${run.id}/curves`)));
  find("#curves").replaceChildren(curves(selected.map((run, index) => ({ name: run.name, curves: histories[index] }))));
  const names = [...new Set(selected.flatMap((run) => [...Object.keys(run), ...Object.keys(run.metrics), ...Object.keys(run.settings)]))].filter((name) => !NEVER_COMPARED.has(name));
  const different = names.filter((name) => new Set(selected.map((run) => shown(valueOf(run, name)))).size > 1);
  find("#differences").replaceChildren(
    make("caption", {}, different.length ? t("runs.differences") : t("runs.equal")),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, t("name")), ...selected.map((run) => make("th", { scope: "col" }, run.name)))),
    make("tbody", {}, different.map((name) => make("tr", {}, make("th", { scope: "row" }, name), ...selected.map((run) => make("td", {}, shown(valueOf(run, name))))))));
}

/** Return a chart for each curve that the runs have, such as the loss by epoch. */
function curves(entries) {
  const names = [...new Set(entries.flatMap((entry) => Object.keys(entry.curves)))];
  const charts = names.map((name) => {
    const series = entries.filter((entry) => entry.curves[name]).map((entry) => ({ name: entry.name, points: entry.curves[name] }));
    return make("figure", {}, make("figcaption", {}, t("runs.curve", { name })), lines(t("runs.curve", { name }), series),
      make("ul", { class: "legend" }, series.map((one, index) => make("li", {}, make("i", { class: `c${index}` }), one.name))));
  });
  return make("div", { class: "columns" }, charts);
}

function tree(node) {
  const words = [node.path, ...node.facts].filter(Boolean).join("  ·  ");
  return make("li", {}, make("b", {}, t(`kind.${node.kind}`)), ` ${words}`, node.children.length ? make("ul", {}, node.children.map(tree)) : null);
}

async function open(run) {
  const [history, root] = await Promise.all([call(`/data/runs/${run.id}/curves`), call(`/data/runs/${run.id}/lineage`)]);
  const part = (title, values) => (Object.keys(values).length ? make("div", {}, make("h3", {}, title), facts(Object.entries(values).map(([name, value]) => [name, shown(value)]))) : null);
  const { metrics, settings, ...own } = run;
  const dialog = find("#details");
  dialog.replaceChildren(...[
    make("div", { class: "title-row" }, make("h2", { id: "details-title" }, run.name), make("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, t("close"))),
    Object.keys(history).length ? curves([{ name: run.name, curves: history }]) : null,
    make("div", { class: "columns" }, part(t("runs.run"), own), part(t("runs.metrics"), metrics), part(t("runs.settings"), settings)),
    make("h3", {}, t("lineage")), make("ul", { class: "lineage" }, tree(root))].filter(Boolean));
  dialog.showModal();
}

form.addEventListener("submit", (event) => { event.preventDefault(); act(find("button", form), read); });
form.addEventListener("reset", () => setTimeout(() => act(null, read)));
find("#clear").addEventListener("click", () => { chosen.clear(); find("#comparison").hidden = true; showTable(); });

const asked = new URLSearchParams(location.search);
form.where.value = asked.get("where") ?? "";
form.limit.value = asked.get("limit") ?? "20";
sort = asked.get("sort") ?? sort;
columns = (asked.get("columns") ?? "").split(",").filter(Boolean);
read().catch(sayProblem);
