// A scored part as the page shows it: a tile, its facts, and a dialog with image and map.
import { call } from "./api.js";
import { facts, find, make } from "./dom.js";
import { saidIn } from "./said.js";
import { number, percent, shortDigest, t, time, verdict } from "./text.js";
import { viewer } from "./viewer.js";

export const mark = (name) => make("span", { class: "verdict", "data-verdict": name }, verdict(name));
const SHOWABLE = [".jpg", ".png", ".webp", ".bmp"]; // browsers show no TIFF
const fileOf = (part, name) => `/v1/history/${part.id}/${name}`;

export function thumbnail(part, alt = "") {
  const image = make("img", { src: fileOf(part, "thumbnail"), alt, loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "no-image" }, t("image.none"))));
  return image;
}

/** Return a tile that opens the details. */
export function tile(part, extra = null) {
  return make("li", {}, make("button", { type: "button", class: "tile", "data-verdict": part.verdict, onclick: () => openDetails(part) },
    thumbnail(part), mark(part.verdict), make("span", { class: "score" }, number(part.score)),
    part.kind ? make("span", {}, part.kind) : null,
    make("span", {}, time(part.time)), part.lot ? make("span", {}, `${t("lot")} ${part.lot}`) : null, extra));
}

/** Return the facts of a part; in short, only those that say which part it is and how unusual. */
export function partFacts(part, short = false) {
  const long = short ? [] : [
    [t("model"), part.model],
    [t("digest"), part.model_sha256 ? make("span", { class: "digest" }, shortDigest(part.model_sha256)) : null],
  ];
  return facts([
    short ? [] : [t("verdict"), mark(part.verdict)],
    [t("score"), part.threshold == null ? number(part.score) : t("score.of", { score: number(part.score), threshold: number(part.threshold) })],
    [t("p_value"), part.p_value == null ? null : t("p_value.words", { value: number(part.p_value, 2), share: percent(part.p_value) })],
    [t("kind.named"), part.kind ? `${part.kind} (${percent(part.kind_probability, 3)})` : null],
    [t("probability"), part.probability == null ? null : percent(part.probability, 3)],
    [t("time"), time(part.time)],
    [t("lot"), part.lot || null],
    [t("name"), part.name || null],
    [t("part"), part.part && part.part !== part.name ? part.part : null],
    ...long,
    [t("error"), part.error ? saidIn("span", part.error) : null],
  ], short);
}

export function partViewer(part) {
  const size = part.width ? [part.width, part.height] : null;
  return viewer({
    image: fileOf(part, SHOWABLE.includes(part.image) ? "image" : "thumbnail"),
    instead: fileOf(part, "thumbnail"),
    map: part.has_map ? fileOf(part, "heatmap") : null,
    boxes: part.boxes ?? [],
    size,
    alt: t("image.of", { verdict: verdict(part.verdict), score: number(part.score) }),
  });
}

export async function openDetails(row) {
  const dialog = find("#details");
  const part = await call(`/v1/history/${row.id}`).catch(() => row);
  dialog.replaceChildren(
    make("div", { class: "title-row" }, make("h2", { id: "details-title" }, `${verdict(part.verdict)} · ${number(part.score)}`),
      make("button", { type: "button", onclick: () => dialog.close(), autofocus: true }, t("close"))),
    make("div", { class: "columns" }, partViewer(part), partFacts(part)),
  );
  if (!dialog.open) dialog.showModal();
}
