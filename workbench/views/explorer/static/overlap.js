// How far the first heads of two rankings, and of all, are the same.
import { fill, headName, make, sameHead } from "./dom.js";
import { penOf, themeOf } from "./pen.js";
import { ticks } from "./statistics.js";

// Share of the first k that two rankings have in common, for every k, beside what two random orders would share.
export function createOverlap({ store, data, ground }) {
  const { state } = store;
  const canvas = make("canvas", { role: "img" });
  const said = make("figcaption", {});

  function show(a, b) {
    const theme = themeOf(ground());
    const [width, height] = [300, 190];
    const pen = penOf(canvas, width, height);
    const most = Math.min(50, Math.max(2, data.kept(a, state.rule), data.kept(b, state.rule)));
    const [x, y] = [a, b].map((side) => data.first(side, state.rule, most).map(headName));
    const all = data.shape(a.run)[0] * data.shape(a.run)[1];
    const place = (k, share) => [34 + ((k - 1) / (most - 1)) * (width - 46), height - 26 - share * (height - 42)];
    const line = (share, colour, dash) => {
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.setLineDash(dash);
      pen.beginPath();
      for (let k = 1; k <= most; k += 1) pen[k === 1 ? "moveTo" : "lineTo"](...place(k, share(k)));
      pen.stroke();
      pen.setLineDash([]);
    };
    const common = (k) => x.slice(0, k).filter((name) => y.slice(0, k).includes(name));
    line((k) => k / all, theme.quiet, [4, 3]);
    line((k) => common(k).length / k, theme.unsafe, []);
    pen.fillStyle = theme.quiet;
    pen.font = `11px ${theme.font}`;
    pen.textAlign = "right";
    for (const share of [0, 0.5, 1]) pen.fillText(String(share), 28, place(1, share)[1] + 4);
    pen.textAlign = "center";
    for (const k of ticks(1, most, 5)) if (Number.isInteger(k)) pen.fillText(String(k), place(k, 0)[0], height - 12);
    pen.fillText("share of the first k in common, by k", width / 2, height - 1);
    const both = common(state.k);
    said.textContent = `Of the first ${state.k}, ${both.length} in common${both.length ? `: ${both.join(", ")}` : ""}. Dashed: two random orders.`;
    canvas.setAttribute("aria-label", said.textContent);
  }
  return { root: make("figure", {}, canvas, said), show };
}

// A column a side, a row a rank, and a line from each head to where the next side has it: a bump chart.
export function createBump({ store, data, ground, sides }) {
  const { state } = store;
  const lines = make("canvas", { className: "wbx-lines", "aria-hidden": "true" });
  const table = make("table", { className: "wbx-ranks" });
  const root = make("div", { className: "wbx-scroll wbx-bump", tabIndex: 0, role: "region", "aria-label": "the first heads of every side" }, make("div", {}, lines, table));
  let places = [];

  const full = (side) => ({ ...side, criterion: state.criterion });

  function show() {
    const columns = sides.map((side) => data.first(full(side), state.rule, state.k));
    places = [];
    fill(table, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "rank"), sides.map((side) => make("th", { scope: "col" }, side.label)))),
      make("tbody", {}, Array.from({ length: state.k }, (_, i) => make("tr", {}, make("th", { scope: "row" }, String(i + 1)), columns.map((heads, at) => make("td", {}, heads[i] ? cell(heads[i], at) : "–"))))));
    frames();
  }

  function cell(head, at) {
    const share = data.stability(full(sides[at]), state.rule, state.k, head);
    const element = make("button", { type: "button", className: "wbx-link", onclick: () => store.set({ head }), onpointerenter: () => store.set({ hover: head }), onpointerleave: () => store.set({ hover: null }) }, headName(head), Number.isNaN(share) ? "" : make("small", {}, ` ${Math.round(100 * share)} %`));
    places.push({ head, at, element });
    return element;
  }

  // What moves with the chosen head and the pointer: no cell is made again.
  function frames() {
    for (const { head, element } of places) element.classList.toggle("wbx-on", sameHead(head, state.head));
    const theme = themeOf(ground());
    const box = table.getBoundingClientRect();
    if (!box.width) return;
    const pen = penOf(lines, table.offsetWidth, table.offsetHeight);
    const end = (place, right) => {
      const of = place.element.getBoundingClientRect();
      return [(right ? of.right + 4 : of.left - 4) - box.left, (of.top + of.bottom) / 2 - box.top];
    };
    for (const one of places) {
      const next = places.find((place) => place.at === one.at + 1 && sameHead(place.head, one.head));
      if (!next) continue;
      const [[x0, y0], [x1, y1]] = [end(one, true), end(next, false)];
      const [chosen, pointed] = [sameHead(one.head, state.head), sameHead(one.head, state.hover)];
      pen.strokeStyle = chosen ? theme.mark : pointed ? theme.text : theme.field;
      pen.lineWidth = chosen ? 3 : 2;
      pen.beginPath();
      pen.moveTo(x0, y0);
      pen.bezierCurveTo((x0 + x1) / 2, y0, (x0 + x1) / 2, y1, x1, y1);
      pen.stroke();
    }
  }
  return { root, show, frames };
}
