// The page of a detector: metrics that follow the threshold slider, curves, and images.
(() => {
  const { data, $, CURVES, BELOW, colours, plot, plotShares, gallery, start } = report;
  const rows = data.rows;
  const scored = rows.filter((row) => row.score !== null);
  const low = scored.reduce((least, row) => Math.min(least, row.score), Infinity);
  const high = scored.reduce((most, row) => Math.max(most, row.score), -Infinity);
  let threshold = data.threshold;

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
  const isMistake = (row) => rank(row) < 2;

  // Images without a score come last in every order.
  const byScore = (a, b) => (a.score === null) - (b.score === null) || b.score - a.score;
  const orders = {
    worst: (a, b) => rank(a) - rank(b) || (outcome(a) === "missed" ? a.score - b.score : byScore(a, b)),
    high: byScore,
    low: (a, b) => (a.score === null) - (b.score === null) || a.score - b.score,
    name: (a, b) => (a.key < b.key ? -1 : 1),
  };

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
    const symbols = { good: "circle", defective: "diamond", "no label": "square" };
    const traces = kinds().map(([name, test, color]) => {
      const points = rows.map((row, index) => [row, index]).filter(([row]) => row.score !== null && test(row));
      return {
        type: "scatter", mode: "markers", name, x: points.map(([, index]) => index + 1), y: points.map(([row]) => row.score),
        text: points.map(([row]) => row.key.replaceAll("<", "&lt;")), marker: { color, size: 7, symbol: symbols[name], opacity: 0.8 },
      };
    }).filter((trace) => trace.x.length);
    const titles = { legend: { orientation: "h", y: 1.15 }, xaxis: { title: { text: "image, in the order of scoring" } }, yaxis: { title: { text: "score" } } };
    plot("order", traces, { shapes: marker("y"), ...titles });
  }

  function drawHistogram() {
    const many = Math.max(10, Math.min(40, Math.round(2 * Math.sqrt(scored.length))));
    const xbins = { start: low, end: high + (high - low) / many, size: (high - low) / many || 1 };
    const traces = kinds().map(([name, test, color]) => ({
      type: "histogram", name, x: scored.filter(test).map((row) => row.score), xbins, marker: { color }, opacity: 0.75,
    })).filter((trace) => trace.x.length);
    const titles = { legend: { orientation: "h", y: 1.15 }, xaxis: { title: { text: "score" } }, yaxis: { title: { text: "images" } } };
    plot("histogram", traces, { barmode: "overlay", bargap: 0.04, shapes: marker(), ...titles });
  }

  function drawCurves(at) {
    const { good, bad, ink } = colours();
    const places = { roc: [at.rate, at.recall], pr: [at.recall, at.precision] };
    for (const [id, title] of Object.entries(CURVES)) {
      if (!data.curves[id]) continue;
      const [atX, atY] = places[id];
      const line = (curve, title, style) => ({ x: curve.x, y: curve.y, mode: "lines", name: title, line: style });
      const traces = [line(data.curves[id], "images", { color: good, width: 3 })];
      const pixel = data.curves["pixel_" + id];
      if (pixel) traces.push(line(pixel, "pixels", { color: bad, width: 2, dash: "dot" }));
      if (threshold !== null) traces.push({ x: [atX], y: [atY], mode: "markers", name: "images at the threshold", marker: { size: 12, symbol: "diamond", color: ink }, cliponaxis: false });
      plotShares(id, title, traces, { height: 372, legend: BELOW });
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
    draw(at);
    if (threshold === null) return;
    $("threshold-value").textContent = threshold.toPrecision(5);
    $("threshold").setAttribute("aria-valuetext", threshold.toPrecision(5));
    if (!$("judged")) return;
    for (const id of Object.keys(count)) $(id).textContent = count[id];
    $("unlabelled-row").hidden = count.un + count.ua === 0;
    for (const [id, value] of [["precision", at.precision], ["recall", at.recall], ["f1", at.f1], ["far", at.rate]]) $(id).textContent = text(value);
  }

  function facts(row) {
    const parts = [outcome(row), labelOf(row)];
    if (row.score !== null) parts.push(`score ${row.score.toPrecision(6)}`);
    if (threshold !== null) parts.push(`threshold ${threshold.toPrecision(6)}`);
    if (warned(row)) parts.push("to check");
    if (row.p !== null) parts.push(row.p < 0.001 ? "p-value < 0.001" : `p-value ${row.p.toFixed(3)}`);
    if (row.probability !== null) parts.push(`anomaly probability ${(100 * row.probability).toFixed(0)} %`);
    if (row.kind) parts.push(`named ${row.kind}`);
    if (row.boxes) parts.push(`${row.boxes} region${row.boxes > 1 ? "s" : ""}`);
    return parts;
  }

  const images = gallery({
    shows: "original, map and overlay",
    filters: [["by-outcome", outcome, "all outcomes"], ["by-label", labelOf, "all labels"], ["by-kind", nameOf, "all kinds"]],
    orders, isMistake, facts,
    heading: (row) => outcome(row) + (row.score === null ? "" : ` · ${row.score.toPrecision(4)}`) + (warned(row) ? " · to check" : ""),
    caption: (row) => [row.kind && `named ${row.kind}`, row.label, row.key].filter(Boolean).join(" · "),
  });

  let waiting = 0;
  function moveTo(value) {
    threshold = value;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { update(); images.refresh(); });
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

  $("by-kind-label").hidden = !data.named;
  if (threshold !== null && scored.length) setUpSlider();
  update();
  start(update);
})();
