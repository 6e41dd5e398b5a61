"use strict";
// The parts that the pages of reports share: data, charts, filters, and a gallery with a large view.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const PAGE = 60;
  const SIDES = [-0.02, 1.02];
  const CURVES = { roc: ["ROC", "false-alarm rate", "recall"], pr: ["Precision and recall", "recall", "precision"] };
  // Below the plot, where it covers no curve.
  const BELOW = { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let charts = false;

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return { ink: get("--ink"), line: get("--line"), good: get("--bar-good"), bad: get("--bar-bad"), other: get("--bar-other") };
  }

  /** Draw a chart, if the page has it and the chart library has started. */
  function plot(id, traces, extra) {
    if (!charts || !$(id)) return;
    const { ink, line } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, fixedrange: true };
    Plotly.react(id, traces, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif" },
      margin: { l: 56, r: 12, t: 44, b: 48 }, height: 340, showlegend: true, dragmode: false, ...extra,
      xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
    }, { displayModeBar: false, responsive: true });
  }

  /** Draw a chart whose axes are shares. */
  function plotShares(id, [title, x, y], traces, extra) {
    const axis = (text) => ({ title: { text }, range: SIDES });
    plot(id, traces, { title: { text: title, x: 0.02 }, xaxis: axis(x), yaxis: axis(y), ...extra });
  }

  function element(tag, className, content) {
    const created = document.createElement(tag);
    created.className = className;
    created.textContent = content;
    return created;
  }

  /** Fill a filter with the values and how often each occurs; null is no value. */
  function fill(select, values, all) {
    const before = select.value;
    const number = new Map();
    for (const value of values) if (value !== null) number.set(value, (number.get(value) || 0) + 1);
    // Keep the chosen filter, even if no image matches it after a change of the threshold.
    if (before && !number.has(before)) number.set(before, 0);
    const names = [...number.keys()].sort();
    select.replaceChildren(new Option(all, ""), ...names.map((name) => new Option(`${name} (${number.get(name)})`, name)));
    select.value = before;
  }

  /**
   * Show the images as tiles, filtered and in the chosen order, and one of them large.
   *
   * @param shows What the picture of an image shows.
   * @param filters Id of each filter with the value of an image and the words for all of them.
   * @param orders Comparisons by the name of the order.
   * @param isMistake Whether an image is marked.
   * @param heading, caption, facts Words of a tile, and of the large view.
   * @param changed Function that is called after the tiles have changed.
   */
  function gallery({ shows, filters, orders, isMistake, heading, caption, facts, changed = () => {} }) {
    let [limit, chosen, opened] = [PAGE, [], 0];

    function tile(row, index) {
      const button = element("button", "tile" + (isMistake(row) ? " mistake" : ""), "");
      button.type = "button";
      if (row.picture) {
        const image = document.createElement("img");
        image.decoding = "async";
        image.src = row.picture;
        image.alt = `${row.key}: ${shows}`;
        button.append(image);
      } else {
        button.append(element("span", "absent", row.error || "No picture"));
      }
      button.append(element("b", "", heading(row)), element("span", "name", caption(row)));
      button.addEventListener("click", () => enlarge(index));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }

    function enlarge(index) {
      opened = Math.max(0, Math.min(chosen.length - 1, index));
      const row = chosen[opened];
      $("large-title").textContent = row.key;
      $("large-text").textContent = [...facts(row), row.error].filter(Boolean).join(" · ");
      $("large-picture").hidden = !row.picture;
      $("large-picture").alt = `${row.key}: ${shows}`;
      if (row.picture) $("large-picture").src = row.picture;
      $("previous").disabled = opened === 0;
      $("next").disabled = opened === chosen.length - 1;
      if (!$("large").open) $("large").showModal();
    }

    function show() {
      const wanted = filters.filter(([id]) => $(id).value);
      chosen = data.rows.filter((row) => wanted.every(([id, valueOf]) => valueOf(row) === $(id).value));
      chosen.sort(orders[$("by-order").value]);
      $("gallery").replaceChildren(...chosen.slice(0, limit).map(tile));
      $("shown").textContent = `${Math.min(limit, chosen.length)} of ${chosen.length} images shown`;
      $("more").hidden = chosen.length <= limit;
      changed();
    }

    function fromStart() {
      limit = PAGE;
      show();
    }

    /** Count the values of the filters again, and show. */
    function refresh() {
      for (const [id, valueOf, all] of filters) fill($(id), data.rows.map(valueOf), all);
      show();
    }

    for (const id of [...filters.map(([name]) => name), "by-order"]) $(id).addEventListener("change", fromStart);
    $("more").addEventListener("click", () => { limit += 4 * PAGE; show(); });
    $("previous").addEventListener("click", () => enlarge(opened - 1));
    $("next").addEventListener("click", () => enlarge(opened + 1));
    $("close").addEventListener("click", () => $("large").close());
    $("large").addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") enlarge(opened - 1);
      if (event.key === "ArrowRight") enlarge(opened + 1);
    });
    refresh();
    return { fromStart, refresh };
  }

  /** Call `draw` when the chart library has started, and when the colours change. */
  function start(draw) {
    dark.addEventListener("change", draw);
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
  }

  return { data, $, dark, CURVES, BELOW, colours, plot, plotShares, fill, gallery, start };
})();
