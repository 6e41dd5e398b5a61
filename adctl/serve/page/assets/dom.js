// Short ways to find and to make elements. Text is always set as text, never as HTML.
export const find = (selector, within = document) => within.querySelector(selector);
export const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];

const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "hidden") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const makeSvg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Return a list of terms and their values, as pairs of texts or elements; in short, each value stands below its term. */
export const facts = (pairs, short = false) => make("dl", { class: short ? "facts short" : "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined)
  .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

/** Return a function that runs `action` once the calls have paused for `wait` milliseconds. */
export function debounced(action, wait = 150) {
  let timer;
  return (...values) => { clearTimeout(timer); timer = setTimeout(() => action(...values), wait); };
}
