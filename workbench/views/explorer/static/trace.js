// A trace: layers × groups of tokens for each component. A cell that is clicked says its numbers, and which single heads
// bring the most there; those can be chosen in all maps.
import { button, choice, fill, headName, labelled, make, number, sameHead } from "./dom.js";
import { inkOn, shade } from "./pen.js";

const FIRST = 8; // heads named for a cell

export function createTrace({ store, data }) {
  const { state } = store;
  const told = data.manifest.trace;
  const root = make("section", { className: "wbx-block wbx-trace", hidden: !told });
  if (!told) return { root, show() {} };
  const chosen = { value: told.values[0][0], direction: told.directions[0][0], cell: null };
  const change = (name) => (value) => {
    chosen[name] = value;
    draw();
  };
  const maps = make("div", { className: "wbx-trace-maps" });
  const said = make("div", { className: "wbx-trace-said", role: "status" });
  fill(root, make("h3", {}, "How the signal flows"), make("p", { className: "wbx-quiet" }, `${told.about}. What is patched, by layer (0 at the bottom) and tokens; click a cell.`),
    make("div", { className: "wbx-row" }, labelled("patched", choice(told.directions, chosen.direction, change("direction"))), labelled("shown", choice(told.values, chosen.value, change("value")))), maps, said);

  const key = (component) => `trace/${chosen.value}/${component}/${chosen.direction}`;
  const at = (component, layer, group, part) => data.arrays.get(key(component)).array[3 * (layer * told.groups.length + group) + part];

  function table([component, title]) {
    const scale = data.scales.get(key(component));
    const rows = [];
    for (let layer = told.layers - 1; layer >= 0; layer -= 1) {
      const cells = told.groups.map((group, g) => {
        const value = at(component, layer, g, 0);
        const known = !Number.isNaN(value);
        const colour = known ? shade(data.manifest, scale, value) : "";
        const one = button(known && told.layers <= 16 ? number(Number(value.toFixed(2))) : "", () => choose(component, layer, g), {
          disabled: !known, "aria-label": `${title}, layer ${layer}, ${group}: ${number(value)}`,
          "aria-pressed": String(Boolean(chosen.cell && chosen.cell.join() === [component, layer, g].join())),
        });
        if (known) Object.assign(one.style, { background: colour, color: inkOn(colour) });
        return make("td", {}, one);
      });
      rows.push(make("tr", {}, make("th", { scope: "row" }, String(layer)), cells));
    }
    return make("figure", {}, make("figcaption", {}, title), make("table", {}, make("tbody", {}, rows),
      make("tfoot", {}, make("tr", {}, make("th", {}, ""), told.groups.map((group) => make("th", { scope: "col" }, group))))));
  }

  function choose(component, layer, group) {
    chosen.cell = [component, layer, group];
    draw();
    maps.querySelector("[aria-pressed=true]")?.focus();
  }

  // The heads of the cell's layer whose z, patched at its tokens alone, moves the most; largest first.
  function heads(layer, group) {
    const cells = data.arrays.get(key("heads"))?.array;
    if (!cells) return [];
    const values = Array.from({ length: told.heads }, (_, head) => [[layer, head], cells[(layer * told.heads + head) * told.groups.length + group]]);
    return values.filter(([, value]) => !Number.isNaN(value)).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, FIRST);
  }

  function draw() {
    fill(maps, told.components.map(table));
    if (!chosen.cell) return fill(said);
    const [component, layer, group] = chosen.cell;
    const [value, low, high] = [0, 1, 2].map((part) => at(component, layer, group, part));
    const title = told.components.find(([name]) => name === component)[1];
    const words = told.values.find(([name]) => name === chosen.value)[1];
    const sure = Number.isNaN(low) ? "" : ` (${number(low)} to ${number(high)})`;
    const first = heads(layer, group);
    fill(said, make("p", {}, `${title} of layer ${layer} at ${told.groups[group]}: ${number(value)}${sure}, ${words}.`),
      first.length ? make("p", {}, "Single heads there: ", first.map(([head, one]) => button(`${headName(head)} ${number(one)}`, () => store.set({ head }), { className: "wbx-small", "aria-pressed": String(sameHead(head, state.head)) }))) : null);
  }

  draw();
  return { root, show: () => chosen.cell && draw() };
}
