"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const rows = data.rows;
  const scored = rows.filter((row) => row.score !== null);
  const low = scored.reduce((least, row) => Math.min(least, row.score), Infinity);
  const high = scored.reduce((most, row) => Math.max(most, row.score), -Infinity);
  const PAGE = 60;
  let threshold = data.threshold;
  let limit = PAGE;
  let chosen = [];
  let opened = 0;
  let charts = false;

  const isGood = (row) => row.label === data.good;
  const alarm = (row) => row.score > threshold;
  // There are no warnings if the threshold is moved to or below the warning threshold.
  const warnings = () => data.warn !== null && threshold !== null && data.warn < threshold;
  const warned = (row) => row.score !== null && warnings() && row.score > data.warn && !alarm(row);
  const share = (part, whole) => (whole ? part / whole : NaN);
  const text = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3));
  const labelOf = (row) => (row.label === null ? "no label" : row.label);
  const nameOf = (row) => row.kind || "not named";

  function outcome(row) {
    if (row.score === null) return "error";
    if (threshold === null) return "unjudged";
    if (row.label === null) return alarm(row) ? "flagged" : "unflagged";
    if (isGood(row)) return alarm(row) ? "false alarm" : "passed";
    return alarm(row) ? "caught" : "missed";
  }
  const RANKS = { missed: 0, "false alarm": 1, error: 3 };
  const rank = (row) => RANKS[outcome(row)] ?? 2;
  const mistaken = (row) => rank(row) < 2;

  // Images without a score come last in every order.
  const byScore = (a, b) => (a.score === null) - (b.score === null) || b.score - a.score;
  const orders = {
    worst: (a, b) => rank(a) - rank(b) || (outcome(a) === "missed" ? a.score - b.score : byScore(a, b)),
    high: byScore,
    low: (a, b) => (a.score === null) - (b.score === null) || a.score - b.score,
    name: (a, b) => (a.key < b.key ? -1 : 1),
  };

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return { ink: get("--ink"), line: get("--line"), good: get("--bar-good"), bad: get("--bar-bad"), other: get("--bar-other") };
  }

  function layout(extra) {
    const { ink, line } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, fixedrange: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif" },
      margin: { l: 56, r: 12, t: 44, b: 48 }, height: 340, showlegend: true, dragmode: false, ...extra,
      xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
    };
  }
  const options = { displayModeBar: false, responsive: true };

  function marker(across = "x") {
    const along = across === "x" ? "y" : "x";
    const line = (at, dash) => ({
      type: "line", [across + "0"]: at, [across + "1"]: at, [along + "ref"]: "paper", [along + "0"]: 0, [along + "1"]: 1, line: { color: colours().ink, width: 2, dash },
    });
    const lines = threshold === null ? [] : [line(threshold, "dash")];
    return warnings() ? [...lines, line(data.warn, "dot")] : lines;
  }

  function kinds() {
    const { good, bad, other } = colours();
    return [["good", isGood, good], ["defective", (row) => row.label !== null && !isGood(row), bad], ["no label", (row) => row.label === null, other]];
  }

  function drawOrder() {
    if (!$("order")) return;
    const symbols = { good: "circle", defective: "diamond", "no label": "square" };
    const traces = kinds().map(([name, test, color]) => {
      const points = rows.map((row, index) => [row, index]).filter(([row]) => row.score !== null && test(row));
      return {
        type: "scatter", mode: "markers", name, x: points.map(([, index]) => index + 1), y: points.map(([row]) => row.score),
        text: points.map(([row]) => row.key.replaceAll("<", "&lt;")), marker: { color, size: 7, symbol: symbols[name], opacity: 0.8 },
      };
    }).filter((trace) => trace.x.length);
    const titles = { legend: { orientation: "h", y: 1.15 }, xaxis: { title: { text: "image, in the order of scoring" } }, yaxis: { title: { text: "score" } } };
    Plotly.react("order", traces, layout({ shapes: marker("y"), ...titles }), options);
  }

  function drawHistogram() {
    const many = Math.max(10, Math.min(40, Math.round(2 * Math.sqrt(scored.length))));
    const xbins = { start: low, end: high + (high - low) / many, size: (high - low) / many || 1 };
    const traces = kinds().map(([name, test, color]) => ({
      type: "histogram", name, x: scored.filter(test).map((row) => row.score), xbins, marker: { color }, opacity: 0.75,
    })).filter((trace) => trace.x.length);
    const titles = { legend: { orientation: "h", y: 1.15 }, xaxis: { title: { text: "score" } }, yaxis: { title: { text: "images" } } };
    Plotly.react("histogram", traces, layout({ barmode: "overlay", bargap: 0.04, shapes: marker(), ...titles }), options);
  }

  function drawCurves(at) {
    const { good, bad, ink } = colours();
    const kinds = [["roc", "ROC", "false-alarm rate", "recall", at.rate, at.recall], ["pr", "Precision and recall", "recall", "precision", at.recall, at.precision]];
    for (const [id, name, x, y, atX, atY] of kinds) {
      if (!$(id)) continue;
      const line = (curve, title, style) => ({ x: curve.x, y: curve.y, mode: "lines", name: title, line: style });
      const traces = [line(data.curves[id], "images", { color: good, width: 3 })];
      const pixel = data.curves["pixel_" + id];
      if (pixel) traces.push(line(pixel, "pixels", { color: bad, width: 2, dash: "dot" }));
      if (threshold !== null) traces.push({ x: [atX], y: [atY], mode: "markers", name: "images at the threshold", marker: { size: 12, symbol: "diamond", color: ink }, cliponaxis: false });
      const range = [-0.02, 1.02];
      // Below the plot, because a curve of pixels may pass through each of its corners.
      const legend = { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" };
      const titles = { title: { text: name, x: 0.02 }, legend, xaxis: { title: { text: x }, range }, yaxis: { title: { text: y }, range } };
      Plotly.react(id, traces, layout({ height: 372, ...titles }), options);
    }
  }

  function counts() {
    const count = { tn: 0, fp: 0, fn: 0, tp: 0, un: 0, ua: 0 };
    for (const row of scored) {
      if (row.label === null) count[alarm(row) ? "ua" : "un"] += 1;
      else if (isGood(row)) count[alarm(row) ? "fp" : "tn"] += 1;
      else count[alarm(row) ? "tp" : "fn"] += 1;
    }
    return count;
  }

  function draw(at) {
    if (scored.length) {
      drawHistogram();
      drawOrder();
    }
    drawCurves(at);
  }

  function update() {
    const count = counts();
    const at = {
      precision: share(count.tp, count.tp + count.fp), recall: share(count.tp, count.tp + count.fn),
      f1: share(2 * count.tp, 2 * count.tp + count.fp + count.fn), rate: share(count.fp, count.fp + count.tn),
    };
    if (charts) draw(at);
    if (threshold === null) return;
    $("threshold-value").textContent = threshold.toPrecision(5);
    $("threshold").setAttribute("aria-valuetext", threshold.toPrecision(5));
    if (!$("judged")) return;
    for (const id of Object.keys(count)) $(id).textContent = count[id];
    $("unlabelled-row").hidden = count.un + count.ua === 0;
    for (const [id, value] of [["precision", at.precision], ["recall", at.recall], ["f1", at.f1], ["far", at.rate]]) $(id).textContent = text(value);
  }

  function fill(select, values, all) {
    const before = select.value;
    const number = new Map();
    for (const value of values) number.set(value, (number.get(value) || 0) + 1);
    // Keep the chosen filter, even if no image matches it after a change of the threshold.
    if (before && !number.has(before)) number.set(before, 0);
    const names = [...number.keys()].sort();
    select.replaceChildren(new Option(all, ""), ...names.map((name) => new Option(`${name} (${number.get(name)})`, name)));
    select.value = before;
  }

  function element(tag, className, content) {
    const created = document.createElement(tag);
    created.className = className;
    created.textContent = content;
    return created;
  }

  function tile(row, index) {
    const button = element("button", "tile" + (mistaken(row) ? " mistake" : ""), "");
    button.type = "button";
    if (row.picture) {
      const image = document.createElement("img");
      image.decoding = "async";
      image.src = row.picture;
      image.alt = `${row.key}: original, map and overlay`;
      button.append(image);
    } else {
      button.append(element("span", "absent", row.error || "No picture"));
    }
    button.append(element("b", "", outcome(row) + (row.score === null ? "" : ` · ${row.score.toPrecision(4)}`) + (warned(row) ? " · to check" : "")));
    button.append(element("span", "name", [row.kind && `named ${row.kind}`, row.label, row.key].filter(Boolean).join(" · ")));
    button.addEventListener("click", () => enlarge(index));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  function enlarge(index) {
    opened = Math.max(0, Math.min(chosen.length - 1, index));
    const row = chosen[opened];
    const parts = [outcome(row), labelOf(row)];
    if (row.score !== null) parts.push(`score ${row.score.toPrecision(6)}`);
    if (threshold !== null) parts.push(`threshold ${threshold.toPrecision(6)}`);
    if (warned(row)) parts.push("to check");
    if (row.p !== null) parts.push(row.p < 0.001 ? "p-value < 0.001" : `p-value ${row.p.toFixed(3)}`);
    if (row.probability !== null) parts.push(`anomaly probability ${(100 * row.probability).toFixed(0)} %`);
    if (row.kind) parts.push(`named ${row.kind}`);
    if (row.boxes) parts.push(`${row.boxes} region${row.boxes > 1 ? "s" : ""}`);
    if (row.error) parts.push(row.error);
    $("large-title").textContent = row.key;
    $("large-text").textContent = parts.join(" · ");
    $("large-picture").hidden = !row.picture;
    $("large-picture").alt = `${row.key}: original, map and overlay`;
    if (row.picture) $("large-picture").src = row.picture;
    $("previous").disabled = opened === 0;
    $("next").disabled = opened === chosen.length - 1;
    if (!$("large").open) $("large").showModal();
  }

  function show() {
    fill($("by-outcome"), rows.map(outcome), "all outcomes");
    const [kind, label, named] = [$("by-outcome").value, $("by-label").value, $("by-kind").value];
    chosen = rows.filter((row) => (!kind || outcome(row) === kind) && (!label || labelOf(row) === label) && (!named || nameOf(row) === named));
    chosen.sort(orders[$("by-order").value]);
    $("gallery").replaceChildren(...chosen.slice(0, limit).map(tile));
    $("shown").textContent = `${Math.min(limit, chosen.length)} of ${chosen.length} images shown`;
    $("more").hidden = chosen.length <= limit;
  }

  let waiting = 0;
  function moveTo(value) {
    threshold = value;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { update(); show(); });
  }

  function setUpSlider() {
    const slider = $("threshold");
    const [least, most] = [Math.min(low, threshold), Math.max(high, threshold)];
    const margin = (most - least) * 0.02;
    slider.min = least - margin;
    slider.max = most + margin;
    slider.value = threshold;
    slider.addEventListener("input", () => moveTo(Number(slider.value)));
    $("reset").addEventListener("click", () => { slider.value = data.threshold; moveTo(data.threshold); });
    $("slider").hidden = false;
  }

  fill($("by-label"), rows.map(labelOf), "all labels");
  fill($("by-kind"), rows.map(nameOf), "all kinds");
  $("by-kind-label").hidden = !data.named;
  for (const id of ["by-outcome", "by-label", "by-kind", "by-order"]) $(id).addEventListener("change", () => { limit = PAGE; show(); });
  $("more").addEventListener("click", () => { limit += 4 * PAGE; show(); });
  $("previous").addEventListener("click", () => enlarge(opened - 1));
  $("next").addEventListener("click", () => enlarge(opened + 1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(opened - 1);
    if (event.key === "ArrowRight") enlarge(opened + 1);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  if (threshold !== null && scored.length) setUpSlider();
  update();
  show();
  document.documentElement.dataset.ready = "yes";
  // The chart library takes half of the loading time, so it is started after numbers and pictures are shown.
  addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {
    const script = document.createElement("script");
    script.textContent = $("plotly").textContent;
    document.head.append(script);
    charts = true;
    update();
    document.documentElement.dataset.charts = "yes";
  })));
})();
