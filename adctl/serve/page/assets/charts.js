// Charts as SVG: histograms with a threshold, and lines. They need no library and follow the theme by CSS.
import { makeSvg } from "./dom.js";
import { number } from "./text.js";

const LEFT = 56;
const RIGHT = 24;
const TOP = 26;
const BOTTOM = 34;

// A narrow screen gets a narrow chart, so that its letters stay readable.
const narrow = matchMedia("(max-width: 40rem)");
const whole = () => (narrow.matches ? 400 : 800);
const few = (count) => (narrow.matches ? Math.ceil(count / 2) : count);

/** Return round values between two limits, about `count` of them. */
export function ticks(low, high, count = 6) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => span / one <= count);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

function frame(title, height) {
  return makeSvg("svg", { viewBox: `0 0 ${whole()} ${height}`, class: "chart", role: "img", "aria-label": title });
}

function axes(svg, x, y, across, up, height) {
  for (const value of across) {
    svg.append(makeSvg("text", { x: x(value), y: height - 12, "text-anchor": "middle" }, number(value)));
  }
  for (const value of up) {
    svg.append(makeSvg("line", { class: "grid", x1: LEFT, x2: whole() - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(makeSvg("text", { x: LEFT - 8, y: y(value) + 5, "text-anchor": "end" }, number(value)));
  }
  svg.append(makeSvg("line", { class: "axis", x1: LEFT, x2: whole() - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
}

/** Return shares of two sets of counts over the same bins, with marks at thresholds.
 *
 * bins: edges [n+1]; series: [{counts [n], kind: "good"|"new"}]; marks: [{at, name, now}]. */
export function histogram(title, bins, series, marks) {
  const height = 300;
  const svg = frame(title, height);
  const shares = series.map(({ counts }) => {
    const all = counts.reduce((sum, count) => sum + count, 0) || 1;
    return counts.map((count) => count / all);
  });
  const most = Math.max(...shares.flat(), 0.01);
  const x = scale(bins[0], bins.at(-1), LEFT, whole() - RIGHT);
  const y = scale(0, 100 * most, height - BOTTOM, TOP);
  axes(svg, x, y, ticks(bins[0], bins.at(-1), few(8)), ticks(0, 100 * most, 4), height);
  shares.forEach((heights, index) => heights.forEach((share, bin) => {
    if (!share) return;
    const left = x(bins[bin]);
    svg.append(makeSvg("rect", { class: `bar-${series[index].kind}`, x: left + 1, width: Math.max(1, x(bins[bin + 1]) - left - 2), y: y(100 * share), height: y(0) - y(100 * share) }));
  }));
  for (const mark of marks) svg.append(threshold(mark, x, height));
  return svg;
}

function threshold({ at, name, now }, x, height) {
  const place = Math.min(Math.max(x(at), LEFT), whole() - RIGHT);
  const anchor = place > whole() * 0.7 ? "end" : "start";
  const group = makeSvg("g", { "data-mark": now ? "now" : "new" });
  group.append(makeSvg("line", { class: now ? "mark now" : "mark", x1: place, x2: place, y1: now ? TOP + 14 : TOP - 6, y2: height - BOTTOM }));
  group.append(makeSvg("text", { class: now ? "" : "mark-text", x: place + (anchor === "end" ? -6 : 6), y: now ? TOP + 22 : TOP + 2, "text-anchor": anchor }, name));
  return group;
}

/** Return lines over a common axis. series: [{name, points: [[x, y]]}], coloured in their order. */
export function lines(title, series, { logarithmic = false } = {}) {
  const height = 300;
  const svg = frame(title, height);
  const points = series.flatMap((one) => one.points);
  const [lowX, highX] = limits(points.map(([x]) => x));
  const value = (y) => (logarithmic ? Math.log10(y) : y);
  const [lowY, highY] = limits(points.map(([, y]) => value(y)).filter(Number.isFinite));
  const x = scale(lowX, highX, LEFT, whole() - RIGHT);
  const y = scale(lowY, highY, height - BOTTOM, TOP);
  axes(svg, x, y, ticks(lowX, highX, few(8)), ticks(lowY, highY, 5), height);
  series.forEach((one, index) => {
    const drawn = one.points.filter(([, at]) => Number.isFinite(value(at)));
    const path = drawn.map(([across, at]) => `${x(across).toFixed(1)},${y(value(at)).toFixed(1)}`).join(" ");
    svg.append(makeSvg("polyline", { class: `line c${index % 6}`, points: path }));
  });
  return svg;
}

const limits = (values) => (values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]);

/** Return the last scores as dots, oldest left, with the threshold. parts: [{score, verdict}]. */
export function scores(title, parts, limit) {
  const height = 190;
  const svg = frame(title, height);
  const known = parts.filter((part) => part.score !== null);
  const [low, high] = limits([...known.map((part) => part.score), ...(limit === null ? [] : [limit])]);
  const margin = (high - low || 1) * 0.08;
  const x = scale(0, Math.max(known.length - 1, 1), LEFT + 6, whole() - RIGHT - 6);
  const y = scale(low - margin, high + margin, height - BOTTOM, 10);
  axes(svg, x, y, [], ticks(low - margin, high + margin, 4), height);
  if (limit !== null) svg.append(makeSvg("line", { class: "mark now", x1: LEFT, x2: whole() - RIGHT, y1: y(limit), y2: y(limit) }));
  known.forEach((part, index) => svg.append(makeSvg("circle", { class: "dot", "data-verdict": part.verdict, cx: x(index), cy: y(part.score), r: 4.5 })));
  return svg;
}

/** Return a share with its interval on a scale from 0 to `most`; the numbers stand beside it. */
export function interval({ share, low, high }, most) {
  const x = scale(0, most || 1, 4, 196);
  const svg = makeSvg("svg", { viewBox: "0 0 200 16", class: "interval", "aria-hidden": "true" });
  svg.append(makeSvg("line", { class: "grid", x1: 4, x2: 196, y1: 8, y2: 8 }), makeSvg("line", { class: "range", x1: x(low), x2: x(high), y1: 8, y2: 8 }), makeSvg("circle", { cx: x(share), cy: 8, r: 4 }));
  return svg;
}
