// Tab "Review": one part after the other, answered by keys or buttons; the last answer can be taken back.
import { act, call, sayProblem } from "./api.js";
import { find, make } from "./dom.js";
import { listen } from "./events.js";
import { partFacts, partViewer } from "./parts.js";
import { number, t, verdict } from "./text.js";
import { drawRegion } from "./viewer.js";

const KINDS = 9;
const MOST = 500;
const NO_KIND = "unknown";
let queue = [];
let answered = 0;
let at = 0;
let kinds = JSON.parse(localStorage.getItem("adctl-kinds") ?? "[]");
let kind = null;
let drawer = null;
const past = [];
let busy = false;

async function read() {
  queue = (await call("/v1/reviews/queue", { query: { model: find("#model").value, limit: MOST } })).verdicts;
  at = 0;
  show();
}

const current = () => queue[at];

function show() {
  const part = current();
  find("#review").hidden = !part;
  find("#none").hidden = Boolean(part);
  find("#left").textContent = t("review.left", { count: queue.length });
  Object.assign(find("#progress"), { max: Math.max(1, answered + queue.length), value: answered });
  find("#undo").disabled = past.length === 0;
  drawer = null;
  kind = null;
  find("#comment").value = "";
  if (!part) return;
  const view = partViewer(part);
  find("#image").replaceChildren(view);
  if (find(".viewer", view)) drawer = drawRegion(view, regionChanged);
  find("#part-title").textContent = t("review.part", { number: at + 1, of: queue.length });
  find("#part-facts").replaceChildren(partFacts(part));
  find("#previous").disabled = at === 0;
  find("#next").disabled = at >= queue.length - 1;
  showKinds();
  speak(t("review.spoken", { number: at + 1, of: queue.length, verdict: verdict(part.verdict), score: number(part.score) }));
}

const speak = (sentence) => { find("#spoken").textContent = sentence; };

function showKinds() {
  find("#kinds").replaceChildren(...kinds.map((name, index) => make("button", { type: "button", "aria-pressed": String(name === kind), "aria-keyshortcuts": String(index + 1), onclick: () => choose(index) },
    make("kbd", { "aria-hidden": "true" }, String(index + 1)), name)));
}

function choose(index) {
  if (index >= kinds.length) return;
  kind = kind === kinds[index] ? null : kinds[index];
  showKinds();
  speak(kind ? t("review.kind_chosen", { kind }) : t("review.kind_none"));
}

function regionChanged(region) {
  speak(region ? t("review.region", region) : t("review.region_none"));
  find("#region-help").textContent = region ? t("review.region_keys") : t("review.draw");
}

async function answer(label) {
  const part = current();
  if (!part || busy) return;
  busy = true;
  try {
    const body = { verdict_id: part.id, label, kind: label === "defect" ? kind : null, region: label === "defect" ? drawer?.region ?? null : null, comment: find("#comment").value || null };
    const stored = await call("/v1/reviews", { json: body });
    past.push({ part, review: stored.id });
    queue.splice(at, 1);
    answered += 1;
    if (at >= queue.length) at = Math.max(0, queue.length - 1);
    if (queue.length === 0) await read();
    else show();
  } catch (problem) {
    sayProblem(problem);
  } finally {
    busy = false;
  }
}

async function undo() {
  const last = past.pop();
  if (!last || busy) return;
  await act(null, async () => {
    await call(`/v1/reviews/${last.review}`, { method: "DELETE" });
    queue.splice(at, 0, last.part);
    answered -= 1;
    show();
    speak(t("review.undone"));
  });
}

function walk(step) {
  const next = at + step;
  if (next < 0 || next >= queue.length) return;
  at = next;
  show();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const TYPING = "input:not([type=range], [type=checkbox]), select, textarea";

function key(event) {
  if (!find("#keys").checked || event.ctrlKey || event.metaKey || event.altKey || event.target.matches(TYPING)) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (pressed in ARROWS && event.target.matches("input")) return; // they move the slider of the map
  const actions = { g: () => answer("good"), d: () => answer("defect"), u: () => answer("unsure"), z: undo, r: () => drawer?.begin(), Escape: () => drawer?.clear() };
  if (pressed in actions) actions[pressed]();
  else if (/^[1-9]$/.test(pressed)) choose(Number(pressed) - 1);
  else if (pressed in ARROWS && drawer?.region) drawer.move(...ARROWS[pressed], event.shiftKey);
  else if (pressed === "ArrowLeft") walk(-1);
  else if (pressed === "ArrowRight") walk(1);
  else return;
  event.preventDefault();
}

function addKind() {
  const field = find("#new-kind");
  const name = field.value.trim().replaceAll(" ", "_");
  if (!field.reportValidity() || !name || kinds.includes(name) || kinds.length >= KINDS) return;
  kinds.push(name);
  localStorage.setItem("adctl-kinds", JSON.stringify(kinds));
  field.value = "";
  choose(kinds.length - 1);
}

for (const label of ["good", "defect", "unsure"]) find(`#answer-${label}`).addEventListener("click", () => answer(label));
find("#previous").addEventListener("click", () => walk(-1));
find("#next").addEventListener("click", () => walk(1));
find("#undo").addEventListener("click", undo);
find("#add-kind").addEventListener("click", addKind);
find("#new-kind").addEventListener("keydown", (event) => { if (event.key === "Enter") addKind(); });
find("#model").addEventListener("change", () => act(null, read));
find("#keys").checked = localStorage.getItem("adctl-keys") !== "off";
find("#keys").addEventListener("change", (event) => localStorage.setItem("adctl-keys", event.target.checked ? "on" : "off"));
addEventListener("keydown", key);

async function start() {
  const { reviews } = await call("/v1/reviews", { query: { label: "defect", limit: MOST } });
  kinds = [...new Set([...kinds, ...reviews.map((review) => review.kind)])].filter((name) => name !== NO_KIND).slice(0, KINDS);
  const models = await call("/v1/models");
  find("#model").append(...models.map((model) => make("option", { value: model.name }, model.name)));
  await read();
}
start().catch(sayProblem);
listen({ verdict: (part) => { if (part.verdict !== "good" && !current()) act(null, read); } });
