// The page of a comparison: curves of all models, and the images on which they disagree.
(() => {
  const { data, $, dark, CURVES, BELOW, plotShares, fill, start } = report;
  // Okabe and Ito's colours, which colour-blind people can distinguish; dashes distinguish curves printed in grey.
  const LIGHT = ["#0072b2", "#d55e00", "#007f5f", "#b3588f", "#8a6d00", "#2b8cbe", "#333333"];
  const DARK = ["#56b4e9", "#ff9c4a", "#2fc79c", "#e79ac6", "#f0e442", "#9fd3f5", "#dddddd"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

  function draw() {
    const palette = dark.matches ? DARK : LIGHT;
    for (const [id, title] of Object.entries(CURVES)) {
      plotShares(id, title, data.curves.map((curves, index) => ({
        x: curves[id].x, y: curves[id].y, mode: "lines", name: data.names[index],
        line: { color: palette[index % palette.length], dash: DASHES[index % DASHES.length], width: 3 },
      })), { height: 412, legend: BELOW });
    }
  }

  const tiles = [...document.querySelectorAll("#tiles > li")];
  const filters = [["by-kind", "kind", "all kinds"], ["by-label", "label", "all labels"]];
  function show() {
    let count = 0;
    for (const tile of tiles) {
      tile.hidden = filters.some(([id, name]) => $(id).value && tile.dataset[name] !== $(id).value);
      count += !tile.hidden;
    }
    $("shown").textContent = `${count} of ${tiles.length} images shown`;
  }

  if (tiles.length) {
    for (const [id, name, all] of filters) {
      fill($(id), tiles.map((tile) => tile.dataset[name]), all);
      $(id).addEventListener("change", show);
    }
    show();
  }
  start(draw);
})();
