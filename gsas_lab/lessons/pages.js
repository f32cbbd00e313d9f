// Plots on a narrow page: titles that wrap, panels below one another, the legend above them.
"use strict";

function narrow(plot) {
  const layout = plot.layout, change = { "title.font.color": "rgba(0,0,0,0)" };
  const caption = Object.assign(document.createElement("div"), { className: "caption" });
  const say = () => { caption.innerHTML = plot.layout.title?.text ?? ""; };
  plot.parentElement.before(caption);
  plot.on("plotly_afterplot", say);
  say();
  const named = plot._fullData.filter(trace => trace.showlegend && trace.name);
  const legend = layout.showlegend === false ? 0 : named.reduce((sum, trace) =>
    sum + 20 * (1 + (trace.name.match(/<br>/g)?.length ?? 0)), 0);
  Object.assign(change, {
    "margin.l": 52, "margin.r": 14, "margin.t": 24 + legend, "legend.orientation": "v",
    "legend.x": 0, "legend.xanchor": "left", "legend.y": 1.0, "legend.yanchor": "bottom",
    annotations: (layout.annotations ?? []).map(each => ({ ...each, font: { ...each.font, size: 12 } })),
  });
  const places = test => plot._fullData.flatMap((trace, place) => test(trace) ? [place] : []);
  const tables = places(trace => trace.type === "table");
  const axes = Object.keys(layout).filter(name => /^xaxis\d*$/.test(name));
  let lines = 0; // of an axis's name, beyond its first
  for (const name of axes) {
    const wrapped = (layout[name].title?.text ?? "").match(/\S.{0,25}(?= |$)/g) ?? [];
    if (wrapped.length < 2) continue;
    change[`${name}.title.text`] = wrapped.join("<br>");
    lines = Math.max(lines, wrapped.length - 1);
  }
  if (lines && layout.sliders?.length)
    change["sliders[0].pad.t"] = (layout.sliders[0].pad?.t ?? 0) + 22 * lines;
  const panels = axes.filter(name => layout[name].domain)
    .sort((a, b) => layout[a].domain[0] - layout[b].domain[0]);
  const last = tables.length ? 0 : panels.length - 1, gap = 0.2 / (last + 1);
  panels.forEach((name, place) => {
    change[`${name}.domain`] = [0, 1];
    if (!last) return;
    const high = 1 - place / (last + 1), low = place === last ? 0 : high - 1 / (last + 1) + gap;
    change[`${name.replace("x", "y")}.domain`] = [low, high];
    change[`${name}.anchor`] = name.replace("xaxis", "y");
  });
  if (tables.length) { // its cells become three lines high
    change["yaxis.domain"] = [0.75, 1];
    const columnwidth = tables.map(place => [4, ...plot._fullData[place].columnwidth.slice(1)]);
    Plotly.restyle(plot, { "domain.y": tables.map(() => [0, 0.67]), "header.font.size": 12, columnwidth }, tables);
  }
  const height = layout.height + legend + 300 * Math.max(0, last) - 60 + 22 * lines + (tables.length ? 480 : 0);
  tall(plot, height);
  Plotly.relayout(plot, { ...change, height });
  const long = places(trace => trace.type === "bar" && trace.textposition === "inside");
  if (long.length) Plotly.restyle(plot, { textposition: "none" }, long); // would shrink to a line
  const told = places(trace => trace.type === "heatmap" && trace.texttemplate);
  if (told.length) Plotly.restyle(plot, { showscale: false, "textfont.size": 12 }, told);
  const bars = places(trace => trace.type === "heatmap" && !trace.texttemplate);
  if (bars.length > 1)
    Plotly.restyle(plot, {
      "colorbar.x": 1.0, "colorbar.thickness": 10, "colorbar.len": 0.4,
      "colorbar.y": bars.map((_, place) => 1 - (place + 0.42) / bars.length),
    }, bars);
}

function tall(plot, height) { // as high as it is, its frame too
  for (const box of [plot, plot.parentElement]) box.style.height = `${height}px`;
}

window.addEventListener("load", () => {
  if (innerWidth <= 600)
    for (const plot of document.querySelectorAll(".js-plotly-plot")) narrow(plot);
});
