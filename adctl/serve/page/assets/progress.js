// The progress of a training, with a button that stops it.
import { act, call } from "./api.js";
import { find, make } from "./dom.js";
import { said } from "./said.js";
import { t } from "./text.js";

/** Show the progress in an element; the same element is filled again for each event. */
export function showProgress(place, training, stopped) {
  if (place.dataset.training !== training.id) {
    place.dataset.training = training.id;
    const stage = make("p", { id: `stage-${training.id}`, class: "stage" });
    const stop = make("button", { type: "button", class: "danger", onclick: (event) => act(event.target, async () => {
      await call(`/v1/trainings/${training.id}/stop`, { json: {} });
      await stopped();
    }) }, t("train.stop"));
    place.replaceChildren(make("h3", {}, training.name), stage, make("progress", { "aria-labelledby": stage.id }), make("div", { class: "row" }, stop));
  }
  const { stage, done, total } = training.progress ?? {};
  find(".stage", place).textContent = stage ? t(total ? "train.stage_of" : "train.stage", { stage: said(stage), done, total }) : t("train.starting");
  const bar = find("progress", place);
  if (total) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute("value");
}

/** Show a sentence instead of the progress. */
export function showIdle(place, sentence) {
  delete place.dataset.training;
  place.replaceChildren(make("p", { class: "small" }, sentence));
}
