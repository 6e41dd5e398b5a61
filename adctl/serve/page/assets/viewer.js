// An image with its anomaly map above it: opacity slider, boxes, and a region that the user draws.
import { find, make, makeSvg } from "./dom.js";
import { t } from "./text.js";

let opacity = Number(localStorage.getItem("adctl-opacity") ?? 80);

/** Return the image at `image`, with the map at `map` (or null) above it.
 *
 * Addresses may be of the server, `blob:` or `data:`; `instead` is shown if the browser cannot show the image. Boxes are
 * in pixels of the image, whose size is taken from the image itself if `size` [width, height] is not given. */
export function viewer({ image, instead = null, map = null, boxes = [], size = null, alt }) {
  const base = make("img", { class: "base", src: image, alt });
  const over = map ? make("img", { class: "over", src: map, alt: "" }) : null;
  const drawing = makeSvg("svg", { class: "over", "aria-hidden": "true", preserveAspectRatio: "none" });
  const stage = make("div", { class: "viewer" }, base, over, drawing);
  const resize = () => {
    const [width, height] = size ?? [base.naturalWidth, base.naturalHeight];
    drawing.setAttribute("viewBox", `0 0 ${width || 1} ${height || 1}`);
    stage.style.setProperty("--ratio", width / height || 1);
  };
  for (const box of boxes) {
    drawing.append(makeSvg("rect", { class: "box", x: box.x, y: box.y, width: box.width, height: box.height }));
  }
  base.addEventListener("load", resize);
  base.addEventListener("error", () => {
    if (instead && !base.src.endsWith(instead)) base.src = instead;
    else stage.replaceChildren(absent());
  });
  if (over) over.addEventListener("error", () => over.remove());
  if (size) resize();
  return make("div", {}, stage, over || boxes.length ? controls(over, drawing, boxes.length) : null);
}

const absent = () => make("div", { class: "no-image" }, t("image.none"));

function controls(over, drawing, boxes) {
  const shown = make("output", {}, `${opacity} %`);
  const set = (value) => {
    opacity = Number(value);
    shown.textContent = `${opacity} %`;
    if (over) over.style.opacity = opacity / 100;
    localStorage.setItem("adctl-opacity", String(opacity));
  };
  if (over) over.style.opacity = opacity / 100;
  const slide = make("input", { type: "range", min: 0, max: 100, step: 5, value: String(opacity), "aria-label": t("image.opacity"), oninput: (event) => set(event.target.value) });
  const check = make("input", { type: "checkbox", checked: true, onchange: (event) => { drawing.querySelectorAll(".box").forEach((box) => { box.style.display = event.target.checked ? "" : "none"; }); } });
  return make("div", {},
    over ? make("div", { class: "slider" }, make("span", { class: "small" }, t("image.opacity")), slide, shown) : null,
    boxes ? make("label", { class: "small" }, check, t("image.boxes", { count: boxes })) : null);
}

const STEP = 0.02;

/** Let the user draw one rectangle on a viewer by pointer or keys; `changed` gets {x, y, width, height} in pixels, or null. */
export function drawRegion(view, changed) {
  const stage = find(".viewer", view);
  const drawing = find("svg", stage);
  const box = () => drawing.viewBox.baseVal;
  let region = null;
  let start = null;

  function show(next, final = true) {
    region = next;
    find(".region", drawing)?.remove();
    if (region) drawing.append(makeSvg("rect", { class: "region", ...region }));
    if (final) changed(region);
  }
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  function point(event) {
    const frame = stage.getBoundingClientRect();
    return [clamp((event.clientX - frame.left) / frame.width, 1) * box().width, clamp((event.clientY - frame.top) / frame.height, 1) * box().height];
  }
  const between = ([x, y], [x2, y2]) => ({
    x: Math.round(Math.min(x, x2)), y: Math.round(Math.min(y, y2)), width: Math.max(1, Math.round(Math.abs(x2 - x))), height: Math.max(1, Math.round(Math.abs(y2 - y))),
  });

  stage.classList.add("drawing");
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    start = point(event);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => { if (start) show(between(start, point(event)), false); });
  stage.addEventListener("pointercancel", () => { start = null; });
  stage.addEventListener("pointerup", (event) => {
    if (!start) return;
    const drawn = between(start, point(event));
    start = null;
    // A click without a movement removes the region.
    show(drawn.width > box().width * STEP / 2 && drawn.height > box().height * STEP / 2 ? drawn : null);
  });

  return {
    get region() { return region; },
    clear() { show(null); },
    /** Put a region into the middle of the image, for those who work with keys. */
    begin() {
      const { width, height } = box();
      show({ x: Math.round(width * 0.4), y: Math.round(height * 0.4), width: Math.round(width * 0.2), height: Math.round(height * 0.2) });
    },
    /** Move the region by steps of the image's size; with `resize` its right lower corner. */
    move(across, down, resize) {
      if (!region) return;
      const { width, height } = box();
      const [dx, dy] = [Math.max(1, Math.round(width * STEP)) * across, Math.max(1, Math.round(height * STEP)) * down];
      const next = { ...region };
      if (resize) {
        next.width = Math.min(Math.max(region.width + dx, 1), width - region.x);
        next.height = Math.min(Math.max(region.height + dy, 1), height - region.y);
      } else {
        next.x = clamp(region.x + dx, width - region.width);
        next.y = clamp(region.y + dy, height - region.height);
      }
      show(next);
    },
  };
}
