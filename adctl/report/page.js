"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const rows = data.rows;
  const scored = rows.filter((row) => row.score !== null);
  const PAGE = 60;
  let threshold = data.threshold;
  let limit = PAGE;

  const isGood = (row) => row.label === data.good;
  const alarm = (row) => row.score > threshold;
  const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "–");

  function outcome(row) {
    if (row.error !== null) return "error";
    if (threshold === null) return "unjudged";
    if (row.label === null) return alarm(row) ? "flagged" : "unflagged";
    if (isGood(row)) return alarm(row) ? "false alarm" : "passed";
    return alarm(row) ? "caught" : "missed";
  }
  const mistaken = (row) => ["missed", "false alarm", "error"].includes(outcome(row));

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return { ink: get("--ink"), line: get("--line"), good: "#3b82c4", bad: "#e07b39", other: "#8a8f98" };
  }

  function layout(extra) {
    const { ink, line } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif" },
      margin: { l: 56, r: 12, t: 40, b: 48 }, height: 340, legend: { orientation: "h", y: 1.12 }, ...extra,
      xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
    };
  }
  const options = { displayModeBar: false, responsive: true };

  function line() {
    if (threshold === null) return [];
    return [{ type: "line", x0: threshold, x1: threshold, yref: "paper", y0: 0, y1: 1, line: { color: colours().ink, width: 2, dash: "dash" } }];
  }

  function drawHistogram() {
    const { good, bad, other } = colours();
    const low = Math.min(...scored.map((row) => row.score));
    const high = Math.max(...scored.map((row) => row.score));
    const xbins = { start: low, end: high + (high - low) / 39, size: (high - low) / 40 || 1 };
    const kinds = [["good", isGood, good], ["defective", (row) => row.label !== null && !isGood(row), bad], ["no label", (row) => row.label === null, other]];
    const traces = kinds.map(([name, test, color]) => ({
      type: "histogram", name, x: scored.filter(test).map((row) => row.score), xbins, marker: { color }, opacity: 0.7,
    })).filter((trace) => trace.x.length);
    Plotly.newPlot("histogram", traces, layout({ barmode: "overlay", shapes: line(), showlegend: true, xaxis: { title: { text: "score" } }, yaxis: { title: { text: "images" } } }), options);
  }

  function drawCurves() {
    const { good, bad } = colours();
    for (const [id, name, x, y] of [["roc", "ROC", "false-alarm rate", "recall"], ["pr", "Precision and recall", "recall", "precision"]]) {
      if (!$(id)) continue;
      const curve = data.curves[id];
      const traces = [{ x: curve.x, y: curve.y, mode: "lines", name: "images", line: { color: good, width: 3 } }];
      const pixel = data.curves["pixel_" + id];
      if (pixel) traces.push({ x: pixel.x, y: pixel.y, mode: "lines", name: "pixels", line: { color: bad, width: 2, dash: "dot" } });
      traces.push({ x: [null], y: [null], mode: "markers", name: "threshold", marker: { size: 12, symbol: "diamond", color: colours().ink } });
      const range = [-0.02, 1.02];
      Plotly.newPlot(id, traces, layout({ title: { text: name, x: 0.02 }, showlegend: true, legend: { orientation: "h", y: -0.25 }, xaxis: { title: { text: x }, range }, yaxis: { title: { text: y }, range } }), options);
    }
  }

  function judge() {
    const count = { tn: 0, fp: 0, fn: 0, tp: 0, un: 0, ua: 0 };
    for (const row of scored) {
      if (row.label === null) count[alarm(row) ? "ua" : "un"] += 1;
      else if (isGood(row)) count[alarm(row) ? "fp" : "tn"] += 1;
      else count[alarm(row) ? "tp" : "fn"] += 1;
    }
    for (const id of Object.keys(count)) $(id).textContent = count[id];
    $("unlabelled-row").hidden = count.un + count.ua === 0;
    $("precision").textContent = share(count.tp, count.tp + count.fp);
    $("recall").textContent = share(count.tp, count.tp + count.fn);
    $("f1").textContent = share(2 * count.tp, 2 * count.tp + count.fp + count.fn);
    $("far").textContent = share(count.fp, count.fp + count.tn);
    $("threshold-value").textContent = threshold.toPrecision(5);
    Plotly.relayout("histogram", { shapes: line() });
    const recall = count.tp / (count.tp + count.fn), precision = count.tp / (count.tp + count.fp), rate = count.fp / (count.fp + count.tn);
    if ($("roc")) {
      const last = (id) => $(id).data.length - 1;
      Plotly.restyle("roc", { x: [[rate]], y: [[recall]] }, [last("roc")]);
      Plotly.restyle("pr", { x: [[recall]], y: [[precision]] }, [last("pr")]);
    }
  }

  function fill(select, values, all) {
    const chosen = select.value;
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    select.replaceChildren(new Option(all, ""), ...[...counts].sort().map(([value, number]) => new Option(`${value} (${number})`, value)));
    select.value = [...select.options].some((option) => option.value === chosen) ? chosen : "";
  }
  const labelOf = (row) => row.label === null ? "no label" : row.label;

  const orders = {
    worst: (a, b) => mistaken(b) - mistaken(a) || (mistaken(a) ? Math.abs(b.score - threshold) - Math.abs(a.score - threshold) : b.score - a.score),
    high: (a, b) => b.score - a.score,
    low: (a, b) => a.score - b.score,
    name: (a, b) => (a.key < b.key ? -1 : 1),
  };

  function tile(row) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "tile" + (mistaken(row) ? " mistake" : "");
    if (row.picture) {
      const image = document.createElement("img");
      image.loading = "lazy";
      image.src = row.picture;
      image.alt = `${row.key}: original, map and overlay`;
      button.append(image);
    } else {
      const absent = document.createElement("div");
      absent.className = "absent";
      absent.textContent = row.error || "no picture";
      button.append(absent);
    }
    const heading = document.createElement("b");
    heading.textContent = outcome(row) + (row.score === null ? "" : ` · ${row.score.toPrecision(4)}`);
    const text = document.createElement("span");
    text.textContent = `${row.key}${row.label === null ? "" : " · " + row.label}`;
    button.append(heading, text);
    button.addEventListener("click", () => enlarge(row));
    item.append(button);
    return item;
  }

  function enlarge(row) {
    $("large-title").textContent = row.key;
    $("large-picture").hidden = !row.picture;
    if (row.picture) $("large-picture").src = row.picture;
    $("large-picture").alt = `${row.key}: original, map and overlay`;
    const parts = [outcome(row), labelOf(row)];
    if (row.score !== null) parts.push(`score ${row.score.toPrecision(6)}`);
    if (threshold !== null) parts.push(`threshold ${threshold.toPrecision(6)}`);
    if (row.boxes) parts.push(`${row.boxes} region${row.boxes > 1 ? "s" : ""}`);
    if (row.error) parts.push(row.error);
    $("large-text").textContent = parts.join(" · ");
    $("large").showModal();
  }

  function show() {
    fill($("by-outcome"), rows.map(outcome), "all outcomes");
    const chosen = rows.filter((row) => (!$("by-outcome").value || outcome(row) === $("by-outcome").value) && (!$("by-label").value || labelOf(row) === $("by-label").value));
    chosen.sort(orders[$("by-order").value]);
    $("gallery").replaceChildren(...chosen.slice(0, limit).map(tile));
    $("shown").textContent = `${Math.min(limit, chosen.length)} of ${chosen.length} images shown`;
    $("more").hidden = chosen.length <= limit;
  }

  let waiting = 0;
  function moved() {
    judge();
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(show);
  }

  fill($("by-label"), rows.map(labelOf), "all labels");
  for (const id of ["by-outcome", "by-label", "by-order"]) $(id).addEventListener("change", () => { limit = PAGE; show(); });
  $("more").addEventListener("click", () => { limit += 4 * PAGE; show(); });
  if (scored.length) {
    drawHistogram();
    drawCurves();
  }
  if (threshold === null || !scored.length) {
    document.querySelector(".slider").hidden = true;
    $("judged").hidden = true;
  } else {
    const values = scored.map((row) => row.score);
    const slider = $("threshold");
    const low = Math.min(...values, threshold), high = Math.max(...values, threshold);
    slider.min = low - (high - low) * 0.02;
    slider.max = high + (high - low) * 0.02;
    slider.value = threshold;
    slider.addEventListener("input", () => { threshold = Number(slider.value); moved(); });
    $("reset").addEventListener("click", () => { threshold = data.threshold; slider.value = threshold; moved(); });
    judge();
  }
  show();
  document.documentElement.dataset.ready = "yes";
})();
