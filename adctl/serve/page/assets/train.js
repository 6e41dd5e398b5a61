// Tab "Train": good images become a model; the progress is live, and a training can be stopped.
import { act, call, Problem, say, sayProblem } from "./api.js";
import { facts, find, make } from "./dom.js";
import { listen } from "./events.js";
import { showIdle, showProgress } from "./progress.js";
import { saidIn } from "./said.js";
import { number, t, time } from "./text.js";

const POLL = 5000;
const form = find("#training");
let again;

async function read() {
  const answer = await call("/v1/trainings");
  if (!find("#arch").options.length) {
    find("#arch").append(...answer.detectors.map((name) => make("option", { value: name }, name)));
    describe();
  }
  find("#folder-choice").hidden = answer.folders.length === 0;
  find("#folders").replaceChildren(...answer.folders.map((name) => make("option", { value: name })));
  const running = answer.trainings.find((one) => one.state === "running");
  clearTimeout(again);
  if (running) {
    showProgress(find("#now"), running, read);
    again = setTimeout(() => read().catch(sayProblem), POLL); // another process of the server may run it
  } else showIdle(find("#now"), t("train.idle"));
  const ended = answer.trainings.filter((one) => one.state !== "running" && !one.updates);
  find("#past").replaceChildren(...(ended.length ? ended.map(past) : [make("li", { class: "small" }, t("train.none"))]));
  find("button.first", form).disabled = Boolean(running);
}

const describe = () => { find("#arch-help").textContent = t(`detector.${find("#arch").value}`); };

function past(training) {
  return make("li", {}, make("h3", {}, training.name), facts([
    [t("models.state"), t(`training.${training.state}`)],
    [t("time"), time(training.started)],
    [t("train.detector"), training.arch],
    [t("train.model"), training.model ?? null],
    [t("train.seconds"), training.seconds ? t("train.seconds_words", { value: number(training.seconds, 3) }) : null],
    [t("error"), training.error ? saidIn("span", training.error) : null],
  ]), training.state === "finished" ? make("button", { type: "button", onclick: (event) => act(event.target, async () => {
    await call(`/v1/trainings/${training.id}/activate`, { json: {} });
    say(t("models.now_loaded", { model: training.name }));
  }) }, t("train.serve")) : null);
}

async function start() {
  const wanted = { name: form.name.value, arch: form.arch.value };
  if (form.source.value === "folder") wanted.folder = form.folder.value;
  else wanted.upload = await upload([...form.files.files]);
  await call("/v1/trainings", { json: wanted });
  say(t("train.started", { name: wanted.name }));
  await read();
}

/** Send the images one after the other, so that none is too large for one request; returns the name of their set. */
async function upload(files) {
  let set = null;
  for (const [index, file] of files.entries()) {
    find("#file-count").textContent = t("train.uploading", { done: index, total: files.length });
    const answer = await call("/v1/trainings/images", { query: { upload: set }, body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });
    set = answer.upload;
  }
  find("#file-count").textContent = t("train.uploaded", { count: files.length });
  return set;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (form.source.value === "upload" && !form.files.files.length) {
    sayProblem(new Problem(t("train.no_files")));
    return;
  }
  act(find("button.first", form), start);
});
form.addEventListener("change", () => {
  const upload = form.source.value === "upload";
  find("#by-upload").hidden = !upload;
  find("#by-folder").hidden = upload;
  find("#file-count").textContent = form.files.files.length ? t("train.file_count", { count: form.files.files.length }) : "";
});
find("#arch").addEventListener("change", describe);

read().catch(sayProblem);
listen({ training: (training) => (training.state === "running" ? showProgress(find("#now"), training, read) : read().catch(sayProblem)) }, () => read().catch(sayProblem));
