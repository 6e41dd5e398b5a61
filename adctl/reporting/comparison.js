"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's colours, which colour-blind people can distinguish; dashes distinguish curves printed in grey.
  const LIGHT = ["#0072b2", "#d55e00", "#007f5f", "#b3588f", "#8a6d00", "#2b8cbe", "#333333"];
  const DARK = ["#56b4e9", "#ff9c4a", "#2fc79c", "#e79ac6", "#f0e442", "#9fd3f5", "#dddddd"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    const palette = dark.matches ? DARK : LIGHT;
    const range = [-0.02, 1.02];
    const axis = { gridcolor: get("--line"), zerolinecolor: get("--line"), automargin: true, fixedrange: true, range };
    for (const [id, name, x, y] of [["roc", "ROC", "false-alarm rate", "recall"], ["pr", "Precision and recall", "recall", "precision"]]) {
      if (!$(id)) continue;
      const traces = data.curves.map((curves, index) => ({
        x: curves[id].x, y: curves[id].y, mode: "lines", name: data.names[index],
        line: { color: palette[index % palette.length], dash: DASHES[index % DASHES.length], width: 3 },
      }));
      Plotly.react(id, traces, {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: get("--ink"), family: "system-ui, sans-serif" },
        margin: { l: 56, r: 12, t: 44, b: 48 }, height: 412, showlegend: true, dragmode: false, title: { text: name, x: 0.02 },
        // Below the plot, where it covers no curve.
        legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" },
        xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y } },
      }, { displayModeBar: false, responsive: true });
    }
  }

  const tiles = [...document.querySelectorAll("#tiles > li")];
  function fill(select, name, all) {
    const number = new Map();
    for (const tile of tiles) number.set(tile.dataset[name], (number.get(tile.dataset[name]) || 0) + 1);
    const options = [...number.keys()].sort().map((value) => new Option(`${value} (${number.get(value)})`, value));
    select.replaceChildren(new Option(all, ""), ...options);
    select.addEventListener("change", show);
  }
  function show() {
    const [kind, label] = [$("by-kind").value, $("by-label").value];
    let count = 0;
    for (const tile of tiles) {
      tile.hidden = (kind && tile.dataset.kind !== kind) || (label && tile.dataset.label !== label);
      count += !tile.hidden;
    }
    $("shown").textContent = `${count} of ${tiles.length} images shown`;
  }

  if (tiles.length) {
    fill($("by-kind"), "kind", "all kinds");
    fill($("by-label"), "label", "all labels");
    show();
  }
  draw();
  dark.addEventListener("change", draw);
  document.documentElement.dataset.ready = "yes";
  document.documentElement.dataset.charts = "yes";
})();
