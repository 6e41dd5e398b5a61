// The candidate that reviewed parts make of a model, beside the present model, before anyone accepts it.
import { act, call, say } from "./api.js";
import { interval } from "./charts.js";
import { find, make } from "./dom.js";
import { mark, openDetails } from "./parts.js";
import { showProgress } from "./progress.js";
import { saidIn } from "./said.js";
import { number, percent, t, time } from "./text.js";

const SHOWN = 24;
const DOUBTFUL = ["unlike the others", "also a defect"];
const address = (model, tail = "") => `/v1/models/${encodeURIComponent(model.name)}/candidates${tail}`;
/** The identifier of a verdict is the name of its file among the reviewed images. */
const verdictOf = (path) => path.split(/[\\/]/).pop().split(".")[0];

/** Return the part of a model's panel that improves it by reviews; `changed` is called when another version is in use. */
export async function candidatePanel(model, changed) {
  const place = make("div", { class: "candidate", "data-model": model.name });
  await fill(place, model, changed);
  return place;
}

async function fill(place, model, changed) {
  const { reviewed, candidates } = await call(address(model));
  const newest = candidates[0];
  const again = () => fill(place, model, changed);
  const running = newest?.training.state === "running";
  const start = (kind, confirmed = []) => async () => { await call(address(model), { json: { kind, confirmed } }); await again(); };
  const choice = (kind, name) => make("button", { type: "button", onclick: (event) => act(event.target, start(kind)) }, t(name));
  place.replaceChildren(make("h3", {}, t("candidate.title")), make("p", {}, t("candidate.reviewed", { good: reviewed.good, defect: reviewed.defect })),
    ...(running || !reviewed.good ? [] : [make("div", { class: "row" }, choice("learn", "candidate.learn"), choice("recalibrate", "candidate.recalibrate")), make("p", { class: "small" }, t("candidate.kinds"))]));
  if (running) {
    const progress = make("div", { class: "progress" });
    place.append(progress);
    showProgress(progress, newest.training, again);
  } else if (newest?.training.state === "failed") place.append(make("div", { class: "notice bad" }, saidIn("p", newest.training.error)));
  else if (newest?.update) place.append(result(model, newest, { changed, again, start }));
}

/** Show an event of a training in the panel that it belongs to; returns whether there is one. */
export function showCandidate(training) {
  const progress = find(`.candidate[data-model="${CSS.escape(training.name)}"] .progress`);
  if (!progress || training.state !== "running") return false;
  showProgress(progress, training, () => {});
  return true;
}

function result(model, { training, update, accepted }, { changed, again, start }) {
  const { comparison } = update;
  const doubtful = update.set_aside.filter((one) => DOUBTFUL.includes(one.reason));
  const kind = { accept: "good", "do not accept": "bad" }[comparison.recommendation] ?? "";
  const accept = make("button", { type: "button", class: "first", onclick: (event) => act(event.target, async () => {
    await call(address(model, `/${training.id}/accept`), { json: {} });
    await changed();
    say(t("candidate.now_accepted", { model: model.name }));
  }) }, t("candidate.accept"));
  return make("div", { class: "stack tight" },
    make("p", { class: "small" }, source(update, time(training.started))),
    rates(comparison),
    paired(comparison),
    make("div", { class: `notice ${kind}` }, make("p", {}, make("b", {}, t(`advice.${comparison.recommendation.replaceAll(" ", "_")}`))), saidIn("p", comparison.reason)),
    ...[...update.notes, ...comparison.notes].map((note) => saidIn("p", note, { class: "small" })),
    comparison.changed.length ? changes(comparison.changed) : make("p", {}, t("candidate.no_changes")),
    doubtful.length ? doubts(doubtful, { again, start: (confirmed) => start(onlyThreshold(update) ? "recalibrate" : "learn", confirmed) }) : null,
    accepted ? make("p", {}, make("span", { class: "tag on" }, t("candidate.accepted"))) : make("p", {}, accept));
}

const onlyThreshold = (update) => update.way === "threshold alone";
const source = (update, made) => onlyThreshold(update)
  ? t("candidate.recalibrated", { count: update.held_out, time: made })
  : t("candidate.learned", { count: update.learned, time: made });

const cell = (key, ...content) => make("td", { "data-name": t(key) }, ...content);
const SIGNIFICANT = 0.05;

function table(title, heads, rows) {
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, make("table", { class: "cards-table" },
    make("caption", {}, title),
    make("thead", {}, make("tr", {}, heads.map((key) => make("th", { scope: "col" }, t(key))))),
    make("tbody", {}, rows)));
}

/** Show the thresholds with their promised and measured rates; intervals of a column have one scale. */
function rates(comparison) {
  const share = (name, one) => {
    if (!one) return t("candidate.unmeasured");
    const most = Math.max(...comparison.models.map((model) => model[name]?.high ?? 0));
    const words = { count: one.count, total: one.total, share: percent(one.share), low: percent(one.low), high: percent(one.high) };
    return make("div", {}, t("candidate.share", words), interval(one, most));
  };
  const heads = ["model", "threshold", "models.promise", "candidate.false_alarms", "candidate.recall"];
  return table(t("candidate.comparison"), heads, comparison.models.map((one) => make("tr", {}, make("th", { scope: "row" }, t(`candidate_model.${one.name}`)),
    cell("threshold", number(one.threshold)),
    cell("models.promise", t(one.promised_false_alarm === null ? "candidate.about" : "candidate.at_most", { share: percent(one.promised_false_alarm ?? one.expected_false_alarm) })),
    cell("candidate.false_alarms", share("false_alarms", one.false_alarms)),
    cell("candidate.recall", share("recall", one.recall)))));
}

/** Show McNemar's exact test on the parts on which the two models disagree. */
function paired(comparison) {
  const heads = ["candidate.parts", "candidate.only_candidate", "candidate.only_present", "p_value", "candidate.meaning"];
  return table(t("candidate.paired"), heads, ["false_alarms", "recall"].map((name) => {
    const one = comparison[name];
    const meaning = one.p_value > SIGNIFICANT ? "chance" : one.better > one.worse ? "better" : "worse";
    return make("tr", {}, make("th", { scope: "row" }, t(`candidate.test_${name}`)),
      cell("candidate.only_candidate", number(one.better)),
      cell("candidate.only_present", number(one.worse)),
      cell("p_value", number(one.p_value, 2)),
      cell("candidate.meaning", t(`candidate.${meaning}`)));
  }));
}

function part(path, ...words) {
  const id = verdictOf(path);
  const image = make("img", { src: `/v1/history/${id}/thumbnail`, alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "no-image" }, t("image.none"))));
  const open = make("button", { type: "button", class: "tile", "aria-label": t("candidate.open"), onclick: () => act(null, async () => openDetails(await call(`/v1/history/${id}`))) }, image);
  return make("li", {}, open, make("p", { class: "small" }, ...words));
}

const labelOf = (name) => ({ good: t("label.good"), unknown: t("label.defect") })[name] ?? name;

function changes(changed) {
  const tiles = changed.slice(0, SHOWN).map((one) => part(one.path, t("candidate.labelled", { label: labelOf(one.label) }), make("br"), mark(one.before), make("span", { class: "arrow" }, t("candidate.becomes")), mark(one.after)));
  return make("div", {}, make("h3", {}, t("candidate.changes", { count: changed.length })), make("ul", { class: "tiles wide" }, tiles));
}

/** Show good parts that are unlike the others: they may be defects that were called good. */
function doubts(doubtful, { again, start }) {
  const relabel = (id) => async () => { await call("/v1/reviews", { json: { verdict_id: id, label: "defect" } }); await again(); say(t("candidate.relabelled")); };
  const tiles = doubtful.slice(0, SHOWN).map((one) => {
    const id = verdictOf(one.path);
    const item = part(one.path, saidIn("span", one.detail));
    item.append(make("div", { class: "row" },
      make("button", { type: "button", onclick: (event) => act(event.target, relabel(id)) }, t("candidate.is_defect")),
      one.reason === DOUBTFUL[0] ? make("button", { type: "button", onclick: (event) => act(event.target, start([id])) }, t("candidate.is_good")) : null));
    return item;
  });
  return make("div", { class: "notice bad" }, make("h3", {}, t("candidate.doubts", { count: doubtful.length })), make("p", {}, t("candidate.doubts_words")), make("ul", { class: "tiles wide" }, tiles));
}
