// Tab "Live": the last parts as they come, the share of rejects, and what is wrong.
import { call, sayProblem } from "./api.js";
import { scores } from "./charts.js";
import { debounced, facts, find, make } from "./dom.js";
import { listen } from "./events.js";
import { partFacts, partViewer, tile } from "./parts.js";
import { said } from "./said.js";
import { number, percent, t, verdict } from "./text.js";

const SHOWN = 24;
const KEPT = 500;
const STATE_EVERY = 10000;
let parts = [];

function show() {
  const newest = parts[0];
  find("#parts").replaceChildren(...parts.slice(0, SHOWN).map((part) => tile(part)));
  rates();
  if (!newest || find("#newest").dataset.id === String(newest.id)) return;
  Object.assign(find("#newest").dataset, { verdict: newest.verdict, id: newest.id });
  find("#word").textContent = verdict(newest.verdict);
  find("#word-score").textContent = newest.threshold === null ? number(newest.score) : t("score.of", { score: number(newest.score), threshold: number(newest.threshold) });
  find("#newest-facts").replaceChildren(partFacts(newest, true));
  showImage(newest);
}

/** Show the image with its map; the event tells only what tiles need. */
async function showImage(part) {
  const whole = "boxes" in part ? part : await call(`/v1/history/${part.id}`).catch(() => part);
  if (parts[0]?.id === part.id) find("#newest-image").replaceChildren(partViewer(whole));
}

function rates() {
  const last = parts.slice(0, Number(find("#window").value));
  const share = (name) => (last.length ? last.filter((part) => part.verdict === name).length / last.length : null);
  const card = (name, value, note) => make("div", { class: "card" }, make("dt", {}, name), make("dd", { class: "value" }, value), note ? make("dd", { class: "small" }, note) : null);
  const count = (name) => t("live.parts_count", { count: last.filter((part) => part.verdict === name).length });
  find("#rates").replaceChildren(
    card(t("live.rejected"), percent(share("reject")), count("reject")),
    card(t("live.warned"), percent(share("warn")), count("warn")),
    card(t("live.scored"), number(last.length)),
  );
  const limit = last[0]?.threshold ?? null;
  find("#score-chart").replaceChildren(...(last.length > 1 ? [scores(t("live.chart"), [...last].reverse(), limit), make("p", { class: "small" }, t("live.chart_words"))] : []));
}

const fresh = debounced(show, 60);

function add(part) {
  if (parts.some((one) => one.id === part.id)) return;
  parts = [part, ...parts].slice(0, KEPT);
  fresh();
}

async function readAll() {
  try {
    const answer = await call("/v1/history", { query: { limit: KEPT } });
    parts = answer.verdicts;
    show();
    await readModels();
    await readState();
  } catch (problem) {
    sayProblem(problem);
  }
}

async function readModels() {
  const models = await call("/v1/models");
  find("#model-states").replaceChildren(...(models.length ? models.map(modelState) : [make("p", { class: "small" }, t("models.none"))]));
  const wrong = models.filter((model) => model.drift);
  problems.set("drift", wrong.map((model) => t("problem.drift", { model: model.name, reason: said(model.drift) })));
  problems.set("unloaded", models.some((model) => model.loaded) ? [] : [t("problem.no_model")]);
  showProblems();
}

function modelState(model) {
  return make("div", {}, make("h3", {}, model.name), facts([
    [t("models.state"), model.loaded ? t("models.loaded") : t("models.unloaded")],
    [t("threshold"), model.threshold === null ? t("threshold.none") : number(model.threshold)],
    [t("drift"), model.loaded ? t(model.drift ? "drift.yes" : "drift.no") : null],
  ]));
}

/** Ask what the history and the folder of images miss, now and then. */
async function readState() {
  const state = await fetch("/readyz").then((response) => response.json()).catch(() => null); // 503 has an answer too
  if (!state) return;
  const { missing, reason } = state.history;
  problems.set("history", missing ? [t("problem.history", { count: missing, reason: said(reason) })] : []);
  problems.set("images", state.images.failed ? [t("problem.images", { count: state.images.failed })] : []);
  showProblems();
}

const problems = new Map();

function showProblems() {
  const sentences = [...problems.values()].flat();
  find("#problems").replaceChildren(...sentences.map((sentence) => make("div", { class: "notice bad" }, make("p", {}, sentence))));
}

find("#window").addEventListener("change", rates);
setInterval(readState, STATE_EVERY);
listen({
  verdict: add,
  model: () => readModels().catch(sayProblem),
  drift: () => readModels().catch(sayProblem),
}, readAll);
