// The page of a classifier: confusion matrix, curves of each kind, and images.
(() => {
  const { data, $, CURVES, colours, plotShares, gallery, start } = report;
  const rows = data.rows;

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
  const isMistake = (row) => rank(row) < 3;
  const sure = (row) => (row.probability === null ? -1 : row.probability);
  const orders = {
    worst: (a, b) => rank(a) - rank(b) || (isMistake(a) ? sure(b) - sure(a) : sure(a) - sure(b)),
    sure: (a, b) => sure(b) - sure(a),
    unsure: (a, b) => sure(a) - sure(b),
    name: (a, b) => (a.key < b.key ? -1 : 1),
  };

  const LINES = ["#2f7fc1", "#d9702f", "#2a9d6f", "#b3588f", "#a58400", "#7d8590"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const PLACE = { height: 380, legend: { orientation: "h", y: -0.25, bgcolor: "rgba(0,0,0,0)" } };

  function draw() {
    const titles = { ...CURVES, roc: ["ROC, each kind against all others", ...CURVES.roc.slice(1)] };
    for (const [id, title] of Object.entries(titles)) {
      plotShares(id, title, Object.entries(data.curves).map(([name, own], index) => ({
        x: own[id].x, y: own[id].y, mode: "lines", name: name.replaceAll("<", "&lt;"),
        line: { color: LINES[index % LINES.length], width: 2, dash: DASHES[Math.floor(index / LINES.length) % DASHES.length] },
      })), PLACE);
    }
    const { good, other } = colours();
    const bins = data.reliability;
    plotShares("reliability", ["Reliability", "mean probability of the kind", "share that is right"], [
      { x: [0, 1], y: [0, 1], mode: "lines", name: "perfect", line: { color: other, dash: "dot" } },
      {
        x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.accuracy), mode: "lines+markers", name: "images (larger: more)",
        text: bins.map((bin) => `${bin.images} images`), line: { color: good },
        marker: { color: good, size: bins.map((bin) => 6 + 18 * Math.sqrt(bin.images / rows.length)) }, cliponaxis: false,
      },
    ], PLACE);
  }

  function facts(row) {
    const parts = [outcome(row), `true kind: ${labelOf(row)}`];
    if (row.error) return parts;
    parts.push(`named ${row.name}`, `most probable ${row.kind}, ${(100 * row.probability).toFixed(1)} %`);
    if (row.true !== null) parts.push(`true kind ${(100 * row.true).toFixed(1)} %`);
    return [...parts, `possible: ${row.set.join(", ") || "none"}`];
  }

  const cells = [...document.querySelectorAll("#matrix button")];
  function mark() {
    const [label, kind, result] = ["by-label", "by-kind", "by-outcome"].map((id) => $(id).value);
    for (const cell of cells) cell.setAttribute("aria-pressed", String(!result && cell.dataset.label === label && cell.dataset.kind === kind));
  }

  const images = gallery({
    shows: "original, and places that speak for the kind",
    filters: [["by-label", labelOf, "all kinds"], ["by-kind", (row) => row.kind, "all kinds"], ["by-outcome", outcome, "all outcomes"]],
    orders, isMistake, facts,
    heading: (row) => (row.error ? "error" : `${row.name} · ${(100 * row.probability).toFixed(0)} %`),
    caption: (row) => (row.label === null ? row.key : `true: ${row.label} · ${row.key}`),
    changed: mark,
  });

  function choose(label, kind) {
    for (const [id, value] of [["by-label", label], ["by-kind", kind], ["by-outcome", ""]]) $(id).value = value;
    images.fromStart();
  }
  const offers = (id, value) => [...$(id).options].some((one) => one.value === value);
  for (const cell of cells) {
    const { label, kind } = cell.dataset;
    cell.addEventListener("click", () => {
      if (offers("by-label", label) && !offers("by-kind", kind)) $("by-kind").append(new Option(`${kind} (0)`, kind));
      choose(label, kind);
      $("gallery-title").scrollIntoView({ behavior: "smooth" });
    });
  }
  if ($("cells")) $("cells").addEventListener("change", () => { $("matrix").dataset.cells = $("cells").value; });
  $("all").addEventListener("click", () => choose("", ""));
  start(draw);
})();
