// Sentences of the page's language, and numbers and times as this language writes them.
const messages = JSON.parse(document.getElementById("messages").textContent);
export const language = document.documentElement.lang;
const plural = new Intl.PluralRules(language);

/** Return a sentence; `{name}` in it is replaced. With a value `count`, the form `key.one` or `key.other` is taken. */
export function t(key, values = {}) {
  const form = "count" in values ? messages[`${key}.${plural.select(values.count)}`] ?? messages[`${key}.other`] : undefined;
  const sentence = form ?? messages[key] ?? key;
  return sentence.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : value ?? "";
  });
}

const formats = new Map();
function format(digits) {
  if (!formats.has(digits)) formats.set(digits, new Intl.NumberFormat(language, { maximumSignificantDigits: digits }));
  return formats.get(digits);
}

export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Number.isInteger(value) ? value.toLocaleString(language) : format(digits).format(value);
}

export const percent = (share, digits = 2) => (share === null || share === undefined ? "–" : t("number.percent", { value: format(digits).format(100 * share) }));

const sameDay = (one, other) => one.toDateString() === other.toDateString();

/** Return a time as text: without the date if it is today. Times are ISO texts, or seconds since 1970. */
export function time(value) {
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  const style = sameDay(date, new Date()) ? { timeStyle: "medium" } : { dateStyle: "short", timeStyle: "medium" };
  return new Intl.DateTimeFormat(language, style).format(date);
}

export const verdict = (name) => t(`verdict.${name}`);
export const shortDigest = (digest) => (digest ? digest.replace(/^sha256:/, "").slice(0, 12) : "–");
