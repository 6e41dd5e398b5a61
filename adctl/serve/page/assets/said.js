// Sentences that the server or the library words in English, in the page's language.
import { make } from "./dom.js";
import { language } from "./text.js";

const pairs = JSON.parse(document.getElementById("said").textContent); // none on an English page
const decimal = new Intl.NumberFormat(language).format(0.5)[1];
const PLACEHOLDER = /\{(\w+)\}/g;
/** Values that are words of the server too; all others are names, paths and numbers. */
const WORDS = new Set(["change", "changes", "copies", "details", "direction", "how", "kind", "message", "missing", "other", "part", "problem", "reason", "stage", "statistics", "what", "which", "why", "names", "place", "p", "p_alarms", "p_recall", "alarms", "recall"]);

function template([english, own]) {
  const names = [...english.matchAll(PLACEHOLDER)].map((match) => match[1]);
  const literal = english.split(/\{\w+\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const any = english.endsWith(".") ? "[^]*?" : "[^;]*?"; // parts of a sentence stand in lists
  const pattern = names.map((name, index) => `${literal[index]}(${name === "now" ? "\\S+" : any})`).join("") + literal.at(-1);
  return { own, names, weight: literal.join("").length, pattern: new RegExp(`^${pattern}$`) };
}

// The one with the most words of its own fits best.
const templates = pairs.map(template).sort((one, other) => other.weight - one.weight);
const numbers = (text) => text.replace(/(\d)\.(\d)/g, `$1${decimal}$2`);
const isNumber = (text) => /^-?\d+(\.\d+)?( ?%)?$/.test(text);

const fitting = (text) => templates.find(({ pattern }) => pattern.test(text));

/** Return the translation of one sentence, or of a part of it; null if there is none. */
function translated(text) {
  const found = fitting(text);
  if (!found) return null;
  const parts = found.pattern.exec(text).slice(1);
  const values = Object.fromEntries(found.names.map((name, index) => [name, value(name, parts[index])]));
  return found.own.replace(PLACEHOLDER, (_, name) => values[name]);
}

function value(name, text) {
  if (isNumber(text)) return numbers(text);
  if (!WORDS.has(name)) return text;
  return several(text) ?? text.split("; ").map((part) => translated(part) ?? list(part)).join("; ");
}

const list = (text) => text.split(", ").map((part) => translated(part) ?? numbers(part)).join(", ");

/** Translate sentences that follow each other; null if one of them is unknown. */
function several(text) {
  const whole = fitting(text)?.weight ?? 0;
  for (const end of text.matchAll(/[.!?] (?=\S)/g)) { // a value of the whole could hold the next sentence
    const first = text.slice(0, end.index + 1);
    const rest = (fitting(first)?.weight ?? -1) < whole ? null : several(text.slice(end.index + 2));
    if (rest !== null) return `${translated(first)} ${rest}`;
  }
  return translated(text);
}

/** Return the server's words in the page's language; as they are if there is no translation. */
export const said = (text) => (pairs.length && text ? several(text) ?? text : text);

/** Return the server's words as an element, which says that it is English if there is no translation. */
export function saidIn(tag, text, attributes = {}) {
  const known = pairs.length && text ? several(text) : text;
  return make(tag, { ...attributes, lang: known === null ? "en" : null }, known ?? text);
}
