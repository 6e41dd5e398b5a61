// Tab "Threshold": move the threshold over the scores, see what it means and what it changes, apply it, take it back.
import { act, call, say, sayProblem } from "./api.js";
import { histogram } from "./charts.js";
import { debounced, find, make } from "./dom.js";
import { listen } from "./events.js";
import { mark, tile } from "./parts.js";
import { promise } from "./promise.js";
import { saidIn } from "./said.js";
import { chooseModel } from "./select.js";
import { number, t, verdict } from "./text.js";

const CHANGES = 24;
let model = null;
let state = null;
let wanted = null;
let preview = null;

const address = () => `/v1/models/${encodeURIComponent(model.name)}/threshold`;

async function read() {
  state = model ? await call(address()) : null;
  const usable = state !== null && state.threshold !== null;
  find("#body").hidden = !usable;
  find("#none").hidden = usable;
  if (!usable) return;
  const slider = find("#threshold");
  const { edges } = state.histogram;
  Object.assign(slider, { min: edges[0], max: edges.at(-1), step: (edges.at(-1) - edges[0]) / 1000 || 1 });
  find("#legend-calibration").textContent = t("threshold.calibration_images", { count: state.good_images });
  find("#legend-recent").textContent = t("threshold.recent_images", { count: state.recent });
  find("#rate").value = Number((100 * (state.promised_false_alarm ?? state.expected_false_alarm)).toPrecision(2));
  find("#undo").disabled = !state.undo;
  move({ threshold: state.threshold });
}

/** Show another threshold: a value, or a share of false alarms for which the server finds it. */
function move(choice) {
  wanted = choice;
  if ("threshold" in choice) place(choice.threshold);
  ask();
}

function place(value) {
  find("#threshold").value = value;
  find("#value").textContent = number(value);
  find("#exact").value = Number(value.toPrecision(6));
  const { edges, calibration, recent } = state.histogram;
  find("#chart").replaceChildren(histogram(t("threshold.chart", { threshold: number(value) }), edges,
    [{ counts: calibration, kind: "good" }, { counts: recent, kind: "new" }],
    [...(value === state.threshold ? [] : [{ at: state.threshold, name: t("threshold.now"), now: true }]), { at: value, name: number(value), now: false }]));
}

const ask = debounced(async () => {
  const mine = wanted;
  try {
    const answer = await call(address(), { json: { ...mine, preview: true } });
    if (mine !== wanted) return; // the slider has moved on
    preview = answer;
    if (!("threshold" in mine)) place(answer.threshold);
    find("#promise").replaceChildren(...promise(answer).map((sentence) => make("p", {}, sentence)), ...answer.notes.map((note) => saidIn("p", note)));
    find("#apply").disabled = answer.threshold === state.threshold;
    find("#back").disabled = answer.threshold === state.threshold;
    changes(answer);
  } catch (problem) {
    sayProblem(problem);
  }
}, 120);

function changes({ changed, changed_count: count, recent }) {
  find("#change-count").textContent = recent === 0 ? t("threshold.no_recent") : count === 0 ? t("threshold.no_change", { count: recent }) : t("threshold.change", { count, recent });
  find("#changes").replaceChildren(...changed.slice(0, CHANGES).map((part) => {
    const words = make("span", {}, t("threshold.becomes", { before: verdict(part.was) }), " ", mark(part.becomes));
    return tile({ ...part, verdict: part.was }, words);
  }));
}

const store = (body, sentence, button) => act(button, async () => {
  await call(address(), { json: body });
  await read();
  say(sentence());
});

find("#threshold").addEventListener("input", (event) => move({ threshold: Number(event.target.value) }));
find("#exact").addEventListener("change", (event) => { if (event.target.value !== "") move({ threshold: Number(event.target.value) }); });
find("#by-rate").addEventListener("click", () => { if (find("#rate").reportValidity()) move({ max_false_alarm: Number(find("#rate").value) / 100 }); });
find("#back").addEventListener("click", () => move({ threshold: state.threshold }));
find("#apply").addEventListener("click", (event) => store({ ...wanted, preview: false }, () => t("threshold.applied", { value: state.threshold }), event.target));
find("#undo").addEventListener("click", (event) => store({ undo: true }, () => t("threshold.undone", { value: state.threshold }), event.target));
act(null, () => chooseModel((chosen) => { model = chosen; return act(null, read); }));
listen({ model: (event) => { if (event.name === model?.name && event.threshold !== state?.threshold) act(null, read); } });
