// Tab "Models": what is loaded, its figures and versions; activate, roll back; the candidate from reviews.
import { act, call, say, sayProblem } from "./api.js";
import { candidatePanel, showCandidate } from "./candidates.js";
import { facts, find, make } from "./dom.js";
import { listen } from "./events.js";
import { promise } from "./promise.js";
import { number, shortDigest, t, time } from "./text.js";

const address = (model, tail) => `/v1/models/${encodeURIComponent(model.name)}${tail}`;

async function read() {
  const models = await call("/v1/models");
  const loaded = models.filter((model) => model.loaded);
  const others = models.filter((model) => !model.loaded);
  const panels = await Promise.all(loaded.map(panel));
  find("#models").replaceChildren(...panels);
  find("#none").hidden = models.length > 0;
  find("#load-panel").hidden = others.length === 0;
  find("#unloaded").replaceChildren(...others.map((model) => make("div", { class: "row middle" },
    make("b", { class: "grow" }, model.name), button(t("models.load"), `${model.name}: ${t("models.load")}`, () => change(model, "/load", "models.now_loaded")))));
}

function button(text, name, action, kind = "") {
  return make("button", { type: "button", class: kind, "aria-label": name === text ? null : name, onclick: (event) => act(event.target, action) }, text);
}

async function change(model, tail, sentence, json = {}) {
  await call(address(model, tail), { json });
  await read();
  say(t(sentence, { model: model.name }));
}

async function panel(model) {
  const versions = await call(address(model, "/versions"));
  const threshold = await call(address(model, "/threshold")).catch(() => null); // it has no calibration
  return make("section", { class: "panel", "aria-label": model.name },
    make("div", { class: "title-row" }, make("h2", {}, model.name),
      make("span", { class: "row middle" },
        versions.length > 1 ? button(t("models.rollback"), `${model.name}: ${t("models.rollback")}`, () => change(model, "/rollback", "models.rolled_back")) : null,
        button(t("models.unload"), `${model.name}: ${t("models.unload")}`, () => change(model, "/unload", "models.now_unloaded")))),
    make("div", { class: "columns" }, figures(model, threshold), lineage(model, await call(address(model, "/lineage")))),
    make("h3", {}, t("models.versions")),
    table(model, versions),
    await candidatePanel(model, read));
}

function figures(model, threshold) {
  return facts([
    [t("models.arch"), model.arch],
    [t("models.version"), String(model.version)],
    [t("threshold"), model.threshold === null ? t("threshold.none") : number(model.threshold)],
    [t("models.method"), model.method ? `${model.method} ${number(model.level)}` : null],
    [t("models.promise"), threshold ? promise(threshold)[0] : null],
    [t("models.runtime"), `${model.runtime}, ${model.device}`],
    [t("models.size"), model.image_size ? model.image_size.join(" × ") : null],
    [t("drift"), model.drift ?? t("drift.no")],
  ]);
}

function lineage(model, source) {
  const step = (name, text, inner) => make("li", {}, make("b", {}, name), ` ${text}`, inner ? make("ul", {}, inner) : null);
  const served = step(t("kind.served"), t("models.version_name", { version: model.version }));
  const calibration = step(t("lineage.calibration"), t("lineage.calibration_words", { count: model.calibration_images ?? 0, digest: shortDigest(model.calibration_digest) }), served);
  const file = step(t("lineage.model"), t("lineage.model_words", { arch: model.arch, digest: shortDigest(model.model_digest) }), calibration);
  const images = step(t("lineage.images"), t("lineage.images_words", { count: source.training_images, digest: shortDigest(source.training_digest) }), file);
  return make("div", {}, make("h3", {}, t("lineage")), make("ul", { class: "lineage" }, images));
}

function table(model, versions) {
  const cell = (name, ...children) => make("td", { "data-name": name }, ...children);
  const rows = versions.map((one) => make("tr", { class: one.active ? "chosen" : "" },
    make("th", { scope: "row" }, t("models.version_name", { version: one.version })),
    cell(t("models.since"), time(one.since)),
    cell(t("models.changed_by"), one.changed_by),
    cell(t("threshold"), one.threshold === null ? t("models.own_threshold") : number(one.threshold)),
    cell(t("digest"), make("span", { class: "digest" }, shortDigest(one.model_digest))),
    cell(t("models.state"), one.active ? make("span", { class: "tag on" }, t("models.active")) : one.present
      ? button(t("models.activate"), `${model.name}, ${t("models.version_name", { version: one.version })}: ${t("models.activate")}`, () => change(model, "/activate", "models.activated", { version: one.version }))
      : t("models.gone"))));
  const heads = ["models.version", "models.since", "models.changed_by", "threshold", "digest", "models.state"];
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("models.versions") }, make("table", { class: "cards-table" },
    make("thead", {}, make("tr", {}, heads.map((key) => make("th", { scope: "col" }, t(key))))),
    make("tbody", {}, rows)));
}

read().catch(sayProblem);
listen({
  model: () => read().catch(sayProblem),
  training: (training) => { if (training.updates && !showCandidate(training)) read().catch(sayProblem); },
});
