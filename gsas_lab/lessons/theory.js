// The figures of theory_explorers.py for any settings, computed by the page: Theorem 5.1 is closed.
// A figure says in layout.meta which one it is and where its controls stand; its slider of steps
// gives way to one control for each value. Names, formulas and the order of traces are those of
// theory_explorers.py; tests/browser/test_jupyterlab.py holds both together at random settings.
"use strict";

const alphaOf = (k, n, never = 1) => k / (n - never);
const betaOf = (t, alpha) => 1 - t + t * alpha; // Eq. (27)
const converged = (p, alpha, beta, collisions = false) => // Theorem 5.1, Eq. (10)
  beta * p / (alpha * (collisions ? 1 : 1 - p) + beta * p);
const softplus = s => Math.max(s, 0) + Math.log1p(Math.exp(-Math.abs(s)));
const sigmoid = s => 1 / (1 + Math.exp(-s));
const linspace = (from, to, n) => Array.from({ length: n }, (_, i) => from + (to - from) * i / (n - 1));
const geomspace = (from, to, n) => linspace(Math.log(from), Math.log(to), n)
  .map((x, i) => i === 0 ? from : i === n - 1 ? to : Math.exp(x));
const unique = values => [...new Set(values)];
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

// Python's formats
const comma = x => Math.round(x).toLocaleString("en-US");
const general = (x, digits = 3) => { // :.3g
  if (x === 0) return "0";
  const [mantissa, power] = x.toExponential(digits - 1).split("e");
  const trim = text => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  if (power >= -4 && power < digits) return trim(x.toFixed(digits - 1 - power));
  return `${trim(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
};
const grouped = x => { // :,.3g
  const [whole, part] = general(x).split(".");
  return whole.includes("e") ? general(x) : whole.replace(/\B(?=(\d{3})+$)/g, ",") + (part ? `.${part}` : "");
};
const short = x => x >= 100 ? comma(x) : general(x);
const size = bytes => {
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1) * 1.0005) / 3), 4);
  return `${general(bytes / 1000 ** power)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
};
const head = (title, under) => `${title}<br><span style="font-size:14px">${under}</span>`;
const served = (k, n) => Math.min(k, Math.round(n) - 1);

function thinned(n, exponent) { // Zipf's shares at a few hundred ranks, as _thinned
  let rank = linspace(1, Math.min(n, 200), Math.min(n, 200)), count = rank.map(() => 1);
  if (n > 200) {
    const cuts = unique(geomspace(201, Math.max(n + 1, 202), 400).map(Math.round));
    const low = cuts.slice(0, -1), high = cuts.slice(1).map(cut => Math.min(cut, n + 1) - 1);
    rank = rank.concat(low.map((a, i) => Math.sqrt(a * high[i])));
    count = count.concat(low.map((a, i) => high[i] - a + 1));
  }
  const weight = rank.map(r => r ** -exponent), total = dot(weight, count);
  return [weight.map(w => w / total), count, rank];
}

const DRAW = {
  sigmoid({ beta, score }) {
    const at = sigmoid(score), s = linspace(-8, 8, 161), f = (x, d) => x.toFixed(d);
    const name = `σ<sup>β</sup>, β = ${general(beta)}`, traces = [];
    for (const [power, label] of [[1, "σ, β = 1: BCE"], [beta, name]])
      traces.push({ x: s, y: s.map(v => Math.exp(-power * softplus(-v))), name: label });
    for (const [power, label] of [[1, "positive, β = 1"], [beta, "positive, gBCE"]])
      traces.push({ x: s, y: s.map(v => power * softplus(-v)), name: `${label}: loss` },
        { x: s, y: s.map(v => -power / (1 + Math.exp(v))), name: `${label}: gradient` });
    traces.push({ x: s, y: s.map(softplus), name: "negative: loss" },
      { x: s, y: s.map(sigmoid), name: "negative: gradient" });
    for (const y of [at, at ** beta, at - 1, -beta * (1 - at), at]) traces.push({ x: [score], y: [y] });
    return {
      traces, title: head(
        `σ(${f(score, 1)}) = ${f(at, 3)}, <b>σ<sup>β</sup>(${f(score, 1)}) = ${f(at ** beta, 3)}</b>`,
        `at s = ${f(score, 1)}: a positive pulls with ${f(beta * (1 - at), 3)}, a negative pushes ` +
        `with ${f(at, 3)}; with β = 1 the pull is ${f(1 - at, 3)}`),
    };
  },

  prior({ k, t, n_items: n, prior }) {
    k = served(k, n);
    const alpha = alphaOf(k, n), beta = betaOf(t, alpha), traces = [];
    const said = converged(prior, alpha, beta), plain = converged(prior, alpha, 1), times = said / prior;
    for (const grid of [linspace(0, 1, 201), geomspace(1e-6, 1, 121)])
      traces.push({ x: grid, y: grid, name: "calibrated: σ = P" },
        { x: grid, y: grid.map(p => converged(p, alpha, 1)), name: `BCE, k = ${comma(k)}` },
        { x: grid, y: grid.map(p => converged(p, alpha, beta)), name: `gBCE, t = ${general(t, 6)}` },
        { x: [prior], y: [plain] }, { x: [prior], y: [said] });
    return {
      traces, title: head(times > 1.0005
        ? `P = ${general(prior)} reads <b>${said.toFixed(3)}</b>: ${grouped(times)} times too much`
        : `P = ${general(prior)} reads <b>${general(said)}</b>: calibrated`,
        `α = ${general(alpha)}, β = ${general(beta)}, offset log(β/α) = ` +
        `${Math.log(beta / alpha).toFixed(2).replace(/^-(?=0\.00$)/, "")}; BCE with k = ${comma(k)} reads ${plain.toFixed(3)}`),
    };
  },

  catalogue({ k, t, n_items: n, exponent }, plot) {
    n = Math.round(n);
    k = served(k, n);
    const [prior, count, rank] = thinned(n, exponent), traces = [{ x: rank, y: prior, name: "true P: Zipf" }];
    const sums = [["SASRec: k = 1, t = 0", 1, 0], [`yours: k = ${comma(k)}, t = ${general(t, 6)}`, k, t]]
      .map(([name, own, at]) => {
        const alpha = alphaOf(own, n), beta = betaOf(at, alpha);
        const said = prior.map(p => converged(p, alpha, beta));
        traces.push({ x: rank, y: said, name });
        return dot(said, count);
      });
    const paper = plot.layout.meta.paper, values = [paper, ...sums, 1];
    traces.push({ x: values.map(v => v - 0.5), y: plot.data[3].y, text: values.map(short) });
    return {
      traces, layout: { "xaxis.range": [0, Math.log10(n)] },
      title: head(`Σp = <b>${short(sums[1])}</b>, SASRec's ${short(sums[0])}`,
        `${comma(n)} items; P of the first item ${prior[0].toFixed(3)}; exactly one item comes next`),
    };
  },

  map({ k, t, n_items: n }, plot) {
    k = served(k, n);
    const [prior, count] = thinned(n, plot.layout.meta.exponent), ts = Array.from(plot.data[0].y);
    const summed = ratio => dot(prior.map(p => converged(p, 1, ratio)), count);
    const alpha = alphaOf(k, n), beta = betaOf(t, alpha), own = summed(beta / alpha);
    const cost = 128 * 200 * (k + 1) * 4, full = 128 * 200 * n * 4;
    const ks = unique(geomspace(1, Math.min(2048, n - 1), 45).map(Math.round));
    const power = ts.map(at => ks.map(each => betaOf(at, alphaOf(each, n))));
    const offset = power.map(row => row.map((b, i) => Math.log(b / alphaOf(ks[i], n))));
    const places = linspace(0, Math.max(...offset.flat()), 80), step = places[1];
    const logs = places.map(place => Math.log10(summed(Math.exp(place))));
    const total = offset.map(row => row.map(x => {
      const at = Math.min(Math.max(x / step, 0), 79), low = Math.min(Math.floor(at), 78);
      return logs[low] + (at - low) * (logs[low + 1] - logs[low]);
    }));
    const still = plot.data.map(({ x, y, name }) => ({ x, y, name }));
    const range = [Math.log10(ks[0]), Math.log10(ks.at(-1))];
    return {
      traces: still.map((trace, i) => i < 2 ? { x: ks, y: ts, z: i ? total : power }
        : Array.from(trace.x).length === 1 ? { x: [k], y: [t] } : trace),
      layout: { "xaxis.range": range, "xaxis2.range": range },
      title: head(
        `k = ${comma(k)}, t = ${general(t, 6)}: β = <b>${general(beta)}</b>, Σp = <b>${short(own)}</b>`,
        `α = ${general(alpha)}; ${comma(k + 1)} scores a position, ${size(cost)} of scores a batch: ` +
        `${(100 * cost / full).toFixed(2)}% of a full loss's ${size(full)}`),
    };
  },

  collisions({ k, t, n_items: n, history }) {
    k = served(k, n);
    history = Math.min(history, n - 1 - k);
    const alpha = alphaOf(k, n), beta = betaOf(t, alpha), traces = [];
    const rules = [["positive excluded: Theorem 5.1", 1, false], ["whole catalogue", 0, true],
      ["history excluded", 1 + history, false]];
    [linspace(0, 1, 201), geomspace(1e-4, 1, 121)].forEach((grid, right) => {
      for (const [name, never, collide] of rules)
        traces.push({
          x: grid, name, y: grid.map(p => converged(p, alphaOf(k, n, never), beta, collide) /
            (right ? converged(p, alpha, beta) : 1)),
        });
    });
    return {
      traces, title: head(
        `from the whole catalogue, nothing reads more than <b>${converged(1, alphaOf(k, n, 0), beta, true).toFixed(3)}</b>`,
        `α = ${general(alpha)}, with the history excluded ${general(alphaOf(k, n, 1 + history))}; ` +
        `β = ${general(beta)}. Items of the history itself: never a negative, σ → 1`),
    };
  },
};

// From a control's place to its value, and how the value is told
const log = (low, high, places) => [places, at => 10 ** (low + (high - low) * at / places),
  value => places * (Math.log10(value) - low) / (high - low), general];
const even = (low, high, step) => [Math.round((high - low) / step), at => +(low + step * at).toFixed(4),
  value => (value - low) / step, value => general(value, 6)];
const items = log(Math.log10(50), Math.log10(1_271_638), 600);
const CONTROLS = {
  beta: ["β", ...log(-3, 0, 300)],
  score: ["score s", ...even(-8, 8, 0.1)],
  k: ["negatives k", 11, at => 2 ** at, value => Math.log2(value), comma],
  t: ["t", ...even(0, 1, 0.01)],
  n_items: ["items |I|", 600, at => Math.round(items[1](at)), items[2], comma],
  prior: ["its P", ...log(-6, 0, 600)],
  exponent: ["exponent", ...even(0, 2, 0.01)],
  history: ["history", ...even(0, 2000, 1)],
};

function control(plot) {
  const { theory, values } = plot.layout.meta, panel = document.createElement("div");
  panel.className = "controls";
  const move = () => {
    const { traces, title, layout } = DRAW[theory](values, plot);
    const parts = {}, given = name => traces.map((trace, i) => trace[name] ?? plot.data[i][name]);
    for (const name of ["x", "y", "text", "name"]) parts[name] = given(name);
    const maps = traces.flatMap((trace, i) => trace.z ? [i] : []);
    if (maps.length) Plotly.restyle(plot, { z: maps.map(i => traces[i].z) }, maps);
    Plotly.update(plot, parts, { "title.text": title, ...layout });
  };
  for (const name of Object.keys(values)) {
    const [label, places, value, place, tell] = CONTROLS[name];
    const box = document.createElement("label"), told = document.createElement("output");
    const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: places, step: 1 });
    input.value = Math.round(place(values[name]));
    input.dataset.name = name;
    const say = () => { told.textContent = tell(values[name]); input.dataset.value = values[name]; };
    input.addEventListener("input", () => { values[name] = value(+input.value); say(); move(); });
    say();
    box.append(label, " ", input, told);
    panel.append(box);
  }
  const height = plot.layout.height - 60 - plot.layout.sliders[0].pad.t;
  Plotly.relayout(plot, { sliders: [], height });
  tall(plot, height); // pages.js
  plot.parentElement.before(panel);
}

window.addEventListener("load", () => {
  for (const plot of document.querySelectorAll(".js-plotly-plot"))
    if (plot.layout.meta?.theory) control(plot);
});
