// Two sides next to each other: a run and a projection each. Linked maps, what differs, rank against rank, how the first
// heads overlap, and how far all rankings agree.
import { choice, fill, labelled, make, number, offer, sameHead } from "./dom.js";
import { criterionSource } from "./maps.js";
import { createBump, createOverlap } from "./overlap.js";
import { penOf, themeOf } from "./pen.js";
import { spearman, ticks } from "./statistics.js";

export function sidesOf(data) {
  return data.manifest.runs.flatMap((run, at) => run.projections.map((projection) => ({
    run: at, projection, label: data.manifest.runs.length > 1 ? `${run.label}, ${projection}` : `${projection} masked`,
  })));
}

// Two maps of one unit on one scale, so that like colours are like values.
function oneScale(sources) {
  const [a, b] = sources.map((source) => source.scale);
  if (!a || !b || a.colours !== b.colours || a.unit !== b.unit) return sources;
  const [low, high] = [Math.min(a.low, b.low), Math.max(a.high, b.high)];
  const wider = a.high - a.low >= b.high - b.low ? a : b;
  const scale = { ...wider, low, high, log: a.log && b.log, ticks: a.log && b.log ? [...new Set([...a.ticks, ...b.ticks])].sort((x, y) => x - y) : ticks(low, high, 4) };
  return sources.map((source) => ({ ...source, scale }));
}

// One map less the other, head by head, around zero.
export function differenceSource(data, left, right, column, sources) {
  const shape = data.shape(left.run);
  const same = String(shape) === String(data.shape(right.run));
  const value = (head) => data.value(right, column, head) - data.value(left, column, head);
  let most = 0;
  for (let l = 0; same && l < shape[0]; l += 1) for (let h = 0; h < shape[1]; h += 1) most = Math.max(most, Math.abs(value([l, h])) || 0);
  most ||= 1;
  const why = same ? "A side has no value for it." : "The two have different numbers of layers or heads.";
  return {
    column, title: "Second less first", note: "", shape, value, excluded: () => false, uncertain: () => false, first: () => [],
    scale: { low: -most, high: most, log: false, colours: data.manifest.diverging, ticks: ticks(-most, most, 4), unit: data.scale(left, column)?.unit ?? "" },
    status: (head) => (same && Number.isFinite(value(head)) ? ["known", ""] : [same ? "not computed" : "undefined", why]),
    readout: (head) => (Number.isFinite(value(head)) && same ? [`${number(value(head))}`, sources.map((s) => s.readout(head)[1]).join(" | ")] : ["no difference", why]),
  };
}

export function createCompare({ store, data, ground, counts }) {
  const { state } = store;
  const sides = sidesOf(data);
  const [left, right] = [0, 1].map((at) => choice([], "", (value) => store.set({ sides: state.sides.map((one, i) => (i === at ? Number(value) : one)) })));
  const scatter = make("canvas", { className: "wbx-scatter", role: "img" });
  const said = make("figcaption", {});
  const overlap = createOverlap({ store, data, ground });
  const bump = createBump({ store, data, ground, sides });
  const matrix = make("div", {});
  const root = make("section", { className: "wbx-block" },
    make("div", { className: "wbx-pictures" }, make("figure", {}, scatter, said), overlap.root),
    make("h3", {}, "The first heads, side by side"), bump.root, make("h3", {}, "How far the rankings agree"), matrix);
  let points = [];

  const pair = () => state.sides.map((at) => ({ ...sides[at], criterion: state.criterion }));

  function sources() {
    const both = pair().map((side) => {
      const source = criterionSource(data, side, state.column, state.rule, state.k);
      return { ...source, title: side.label, side, about: source.title };
    });
    return [...oneScale(both), differenceSource(data, ...both.map((one) => one.side), state.column, both)];
  }

  function ranked(side) {
    const ranks = data.ranks(side, state.rule);
    return ranks ? [...ranks] : [];
  }

  function show() {
    counts.compared += 1;
    const options = sides.map((one, i) => [String(i), one.label]);
    offer(left, options, String(state.sides[0]));
    offer(right, options, String(state.sides[1]));
    const [a, b] = pair();
    if (String(data.shape(a.run)) !== String(data.shape(b.run))) {
      points = [];
      said.textContent = "The two have different numbers of layers or heads, so heads cannot be matched.";
    } else showScatter(a, b);
    overlap.show(a, b);
    bump.show();
    showMatrix();
  }

  function showScatter(a, b) {
    const [x, y] = [ranked(a), ranked(b)];
    const wide = data.run(a.run).heads;
    points = x.map((rank, i) => ({ x: rank, y: y[i], head: [Math.floor(i / wide), i % wide] })).filter((p) => p.x && p.y);
    const agree = points.length > 2 ? spearman(points.map((p) => p.x), points.map((p) => p.y)) : NaN;
    said.textContent = `Rank by ${state.rule}: ${points.length} heads that both keep, Spearman ${number(agree)}. Click a point.`;
    drawScatter();
  }

  function drawScatter() {
    const side = 250;
    const theme = themeOf(ground());
    const pen = penOf(scatter, side, side);
    const [a, b] = pair();
    const most = Math.max(1, ...points.map((p) => Math.max(p.x, p.y)));
    const at = (rank) => 30 + ((rank - 1) / Math.max(1, most - 1)) * (side - 42);
    pen.font = `11px ${theme.font}`;
    pen.strokeStyle = theme.line;
    pen.beginPath();
    pen.moveTo(30, 30);
    pen.lineTo(side - 12, side - 12);
    pen.stroke();
    pen.fillStyle = theme.quiet;
    pen.textAlign = "center";
    pen.fillText(a.label, side / 2, 12);
    pen.save();
    pen.translate(12, side / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(b.label, 0, 0);
    pen.restore();
    for (const p of points) {
      const first = p.x <= state.k || p.y <= state.k;
      Object.assign(p, { cx: at(p.x), cy: at(p.y) });
      pen.globalAlpha = first ? 0.95 : 0.4;
      pen.fillStyle = first ? theme.unsafe : theme.quiet;
      pen.beginPath();
      pen.arc(p.cx, p.cy, first ? 4 : 2.5, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    for (const [head, colour] of [[state.locked, theme.lock], [state.hover, theme.quiet], [state.head, theme.mark]]) {
      const point = points.find((p) => sameHead(p.head, head));
      if (!point) continue;
      pen.strokeStyle = colour;
      pen.lineWidth = 2.5;
      pen.beginPath();
      pen.arc(point.cx, point.cy, 7, 0, 7);
      pen.stroke();
    }
    scatter.setAttribute("aria-label", said.textContent);
  }

  scatter.addEventListener("click", (event) => {
    const box = scatter.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const near = points.map((p) => [Math.hypot(p.cx - x, p.cy - y), p]).sort((p, q) => p[0] - q[0])[0];
    if (near && near[0] < 24) store.set({ head: near[1].head });
  });

  function showMatrix() {
    const table = data.manifest.agreement;
    if (!table?.length) return fill(matrix, make("p", { className: "wbx-quiet" }, "There is one ranking only."));
    const names = [...new Set(table.flatMap((row) => [row.a, row.b]))];
    const of = (a, b) => table.find((row) => (row.a === a && row.b === b) || (row.a === b && row.b === a));
    const steps = data.manifest.colours[data.manifest.diverging];
    const entry = (a, b) => {
      if (a === b) return make("td", {}, "");
      const row = of(a, b);
      if (!row || row.spearman === null) return make("td", { title: "too few heads in common, or constant" }, "–");
      const words = row.low === null ? "no interval" : `${number(row.low)} to ${number(row.high)}`;
      return make("td", { title: `Spearman over ${row.heads} heads, ${words}`, style: { "--shade": steps[Math.round(127.5 + 127.5 * row.spearman)] }, className: Math.abs(row.spearman) > 0.6 ? "wbx-agree wbx-strong" : "wbx-agree" }, number(row.spearman), make("small", {}, words));
    };
    fill(matrix, make("div", { className: "wbx-scroll", tabIndex: 0, role: "region", "aria-label": "agreement of rankings" }, make("table", { className: "wbx-matrix" }, make("thead", {}, make("tr", {}, make("td", {}), names.map((n, i) => make("th", { scope: "col", title: n }, String(i + 1))))),
      make("tbody", {}, names.map((a, i) => make("tr", {}, make("th", { scope: "row" }, `${i + 1} ${a}`), names.map((b) => entry(a, b))))))),
      make("p", { className: "wbx-quiet" }, "Spearman between the mean values on unsafe prompts, over heads. Intervals are 95 %, from redrawing the prompts, pairs together; a probe is not trained again, so it has none."));
  }

  // What moves with the chosen head and the pointer.
  function frames() {
    drawScatter();
    bump.frames();
  }

  return { root, show, frames, sources, sides, tools: make("span", { className: "wbx-row" }, labelled("first", left), labelled("second", right)) };
}
