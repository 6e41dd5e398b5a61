"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const rows = data.rows;
  const PAGE = 60;
  let limit = PAGE;
  let chosen = [];
  let opened = 0;
  let charts = false;

  const labelOf = (row) => (row.label === null ? "no label" : row.label);
  function outcome(row) {
    if (row.error !== null) return "error";
    if (row.label === null) return row.name === "unknown" ? "unknown" : "named";
    if (row.name === row.label) return "right";
    if (row.true === null) return row.name === "unknown" ? "new kind, unknown" : "new kind, named";
    return row.name === "unknown" ? "known, called unknown" : "wrong";
  }
  const RANKS = { wrong: 0, "new kind, named": 1, "known, called unknown": 2, error: 4 };
  const rank = (row) => RANKS[outcome(row)] ?? 3;
  const mistaken = (row) => rank(row) < 3;
  const sure = (row) => (row.probability === null ? -1 : row.probability);
  const orders = {
    worst: (a, b) => rank(a) - rank(b) || (mistaken(a) ? sure(b) - sure(a) : sure(a) - sure(b)),
    sure: (a, b) => sure(b) - sure(a),
    unsure: (a, b) => sure(a) - sure(b),
    name: (a, b) => (a.key < b.key ? -1 : 1),
  };

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return { ink: get("--ink"), line: get("--line"), good: get("--bar-good"), other: get("--bar-other") };
  }
  const LINES = ["#2f7fc1", "#d9702f", "#2a9d6f", "#b3588f", "#a58400", "#7d8590"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];

  function layout(title, x, y, more) {
    const { ink, line } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, fixedrange: true, range: [-0.02, 1.02] };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif" },
      margin: { l: 56, r: 12, t: 44, b: 48 }, height: 380, showlegend: true, dragmode: false, title: { text: title, x: 0.02 },
      legend: { orientation: "h", y: -0.25, bgcolor: "rgba(0,0,0,0)" },
      xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y } }, ...more,
    };
  }
  const options = { displayModeBar: false, responsive: true };

  function draw() {
    if (!charts || !$("roc")) return;
    const entries = Object.entries(data.curves);
    for (const [id, title, x, y] of [["roc", "ROC, each kind against all others", "false-alarm rate", "recall"], ["pr", "Precision and recall", "recall", "precision"]]) {
      const traces = entries.map(([name, own], index) => ({
        x: own[id].x, y: own[id].y, mode: "lines", name: name.replaceAll("<", "&lt;"),
        line: { color: LINES[index % LINES.length], width: 2, dash: DASHES[Math.floor(index / LINES.length) % DASHES.length] },
      }));
      Plotly.react(id, traces, layout(title, x, y, {}), options);
    }
    const { good, other } = colours();
    const bins = data.reliability;
    const traces = [
      { x: [0, 1], y: [0, 1], mode: "lines", name: "perfect", line: { color: other, dash: "dot" } },
      {
        x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.accuracy), mode: "lines+markers", name: "images (larger: more)",
        text: bins.map((bin) => `${bin.images} images`), line: { color: good },
        marker: { color: good, size: bins.map((bin) => 6 + 18 * Math.sqrt(bin.images / rows.length)) }, cliponaxis: false,
      },
    ];
    Plotly.react("reliability", traces, layout("Reliability", "mean probability of the kind", "share that is right", {}), options);
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

  const DESCRIBED = "original, and places that speak for the kind";
  function tile(row, index) {
    const button = element("button", "tile" + (mistaken(row) ? " mistake" : ""), "");
    button.type = "button";
    if (row.picture) {
      const image = document.createElement("img");
      image.decoding = "async";
      image.src = row.picture;
      image.alt = `${row.key}: ${DESCRIBED}`;
      button.append(image);
    } else {
      button.append(element("span", "absent", row.error || "No picture"));
    }
    button.append(element("b", "", row.error ? "error" : `${row.name} · ${(100 * row.probability).toFixed(0)} %`));
    button.append(element("span", "name", row.label === null ? row.key : `true: ${row.label} · ${row.key}`));
    button.addEventListener("click", () => enlarge(index));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  function enlarge(index) {
    opened = Math.max(0, Math.min(chosen.length - 1, index));
    const row = chosen[opened];
    const parts = [outcome(row), `true kind: ${labelOf(row)}`];
    if (row.error) parts.push(row.error);
    else {
      parts.push(`named ${row.name}`, `most probable ${row.kind}, ${(100 * row.probability).toFixed(1)} %`);
      if (row.true !== null) parts.push(`true kind ${(100 * row.true).toFixed(1)} %`);
      parts.push(`possible: ${row.set.join(", ") || "none"}`);
    }
    $("large-title").textContent = row.key;
    $("large-text").textContent = parts.join(" · ");
    $("large-picture").hidden = !row.picture;
    $("large-picture").alt = `${row.key}: ${DESCRIBED}`;
    if (row.picture) $("large-picture").src = row.picture;
    $("previous").disabled = opened === 0;
    $("next").disabled = opened === chosen.length - 1;
    if (!$("large").open) $("large").showModal();
  }

  const cells = [...document.querySelectorAll("#matrix button")];
  function show() {
    const [label, kind, result] = ["by-label", "by-kind", "by-outcome"].map((id) => $(id).value);
    chosen = rows.filter((row) => (!label || labelOf(row) === label) && (!kind || row.kind === kind) && (!result || outcome(row) === result));
    chosen.sort(orders[$("by-order").value]);
    $("gallery").replaceChildren(...chosen.slice(0, limit).map(tile));
    $("shown").textContent = `${Math.min(limit, chosen.length)} of ${chosen.length} images shown`;
    $("more").hidden = chosen.length <= limit;
    for (const cell of cells) cell.setAttribute("aria-pressed", String(!result && cell.dataset.label === label && cell.dataset.kind === kind));
  }
  function choose(label, kind) {
    for (const [id, value] of [["by-label", label], ["by-kind", kind], ["by-outcome", ""]]) $(id).value = value;
    limit = PAGE;
    show();
  }
  for (const cell of cells) {
    cell.addEventListener("click", () => {
      if ([...$("by-label").options].some((one) => one.value === cell.dataset.label) && ![...$("by-kind").options].some((one) => one.value === cell.dataset.kind)) {
        $("by-kind").append(new Option(`${cell.dataset.kind} (0)`, cell.dataset.kind));
      }
      choose(cell.dataset.label, cell.dataset.kind);
      $("gallery-title").scrollIntoView({ behavior: "smooth" });
    });
  }
  if ($("cells")) $("cells").addEventListener("change", () => { $("matrix").dataset.cells = $("cells").value; });
  $("all").addEventListener("click", () => choose("", ""));
  fill($("by-label"), rows.map(labelOf), "all kinds");
  fill($("by-kind"), rows.filter((row) => row.kind !== null).map((row) => row.kind), "all kinds");
  fill($("by-outcome"), rows.map(outcome), "all outcomes");
  for (const id of ["by-label", "by-kind", "by-outcome", "by-order"]) $(id).addEventListener("change", () => { limit = PAGE; show(); });
  $("more").addEventListener("click", () => { limit += 4 * PAGE; show(); });
  $("previous").addEventListener("click", () => enlarge(opened - 1));
  $("next").addEventListener("click", () => enlarge(opened + 1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(opened - 1);
    if (event.key === "ArrowRight") enlarge(opened + 1);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  show();
  document.documentElement.dataset.ready = "yes";
  // The chart library takes half of the loading time, so it is started after numbers and pictures are shown.
  addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {
    const script = document.createElement("script");
    script.textContent = $("plotly").textContent;
    document.head.append(script);
    charts = true;
    draw();
    document.documentElement.dataset.charts = "yes";
  })));
})();
