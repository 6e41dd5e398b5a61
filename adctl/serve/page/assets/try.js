// Tab "Try": score images that are dropped, pasted or chosen, one after the other.
import { act, call, Problem, sayProblem } from "./api.js";
import { facts, find, make } from "./dom.js";
import { listen } from "./events.js";
import { mark } from "./parts.js";
import { saidIn } from "./said.js";
import { chooseModel } from "./select.js";
import { number, percent, t, verdict } from "./text.js";
import { viewer } from "./viewer.js";

const waiting = [];
let busy = false;
let done = 0;
let asked = 0;

function take(files) {
  const images = [...files];
  if (!images.length) return;
  if (!find("#model").value) {
    sayProblem(new Problem(t("problem.no_model")));
    return;
  }
  asked += images.length;
  waiting.push(...images);
  if (!busy) work();
}

async function work() {
  busy = true;
  while (waiting.length) {
    const file = waiting.shift();
    const place = make("article", { class: "panel result", "aria-label": file.name }, make("h2", { class: "name" }, file.name), make("p", { class: "small" }, t("try.working")));
    find("#results").prepend(place);
    try {
      place.replaceChildren(...(await score(file)));
    } catch (problem) {
      place.replaceChildren(make("h2", { class: "name" }, file.name), make("div", { class: "notice bad" }, saidIn("p", problem.message)));
    }
    done += 1;
    find("#summary").textContent = t("try.summary", { done, asked });
  }
  busy = false;
}

async function score(file) {
  const query = { map: "png", lot: find("#lot").value, part: file.name };
  const answer = await call(`/v1/models/${encodeURIComponent(find("#model").value)}/score`, {
    query, body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
  });
  const part = { ...answer.results[0], milliseconds: answer.milliseconds.total };
  const address = URL.createObjectURL(file);
  const map = part.map ? `data:image/png;base64,${part.map}` : null;
  const alt = t("image.of", { verdict: verdict(part.verdict), score: number(part.score) });
  const view = viewer({ image: address, instead: `/v1/history/${part.id}/thumbnail`, map, boxes: part.boxes, size: [part.width, part.height], alt });
  return [make("h2", { class: "name" }, file.name), view, words(part)];
}

function words(part) {
  const sentence = part.threshold === null ? t("try.uncalibrated") : t(`try.${part.verdict}`, { score: part.score, threshold: part.threshold });
  return make("div", {}, make("p", {}, mark(part.verdict), " ", sentence), facts([
    [t("score"), number(part.score)],
    [t("p_value"), part.p_value === null ? null : t("p_value.words", { value: number(part.p_value, 2), share: percent(part.p_value) })],
    [t("kind.named"), part.kind ? `${part.kind} (${percent(part.kind_probability, 3)})` : null],
    [t("probability"), part.probability === null ? null : percent(part.probability, 3)],
    [t("image.regions"), number(part.boxes.length)],
    [t("try.time"), t("try.milliseconds", { value: number(part.milliseconds, 3) })],
  ]));
}

const drop = find("#drop");
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
find("#choose").addEventListener("click", () => find("#files").click());
find("#files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
act(null, () => chooseModel());
listen({});
