// The linked maps: one chosen head in all of them, one window, one read-out. Cells are drawn when numbers or sizes
// change; choosing and hovering move frames alone.
import { uncertain } from "./data.js";
import { clamp, headName, make } from "./dom.js";
import { drawFrames, drawMap, heightFor, placed, wholeWindow } from "./heatmap.js";
import { penOf, themeOf } from "./pen.js";
import { nextFrame } from "./state.js";

// What a map of one criterion shows; `column` and `rule` as they are chosen now.
export function criterionSource(data, side, column, rule, k) {
  const record = data.criterion(side.run, side.criterion);
  const shown = data.projectionOf(side.run, side.criterion, side.projection);
  const ranked = record?.rules.includes(rule) ?? false;
  return {
    side, column, title: record?.title ?? side.criterion, note: shown === "none" ? "no mask" : "",
    shape: data.shape(side.run), scale: data.scale(side, column),
    value: (head) => data.value(side, column, head),
    status: (head) => data.status(side, column, head),
    excluded: (head) => ranked && data.rank(side, rule, head) === 0 && Number.isFinite(data.value(side, "unsafe", head)),
    uncertain: (head) => uncertain(data, side, head),
    first: () => data.first(side, rule, k),
    rank: (head) => data.rank(side, rule, head),
    readout(head) {
      const value = data.valueWords(side, column, head);
      const rank = data.rankWords(side, rule, k, head);
      const sure = rank.rank && !Number.isNaN(rank.share) ? ` (in the first ${k}: ${Math.round(100 * rank.share)} %)` : "";
      return [`${value.short} · ${rank.short}${sure}`, `${value.why} ${rank.why}`.trim()];
    },
  };
}

export function createMapGrid({ store, data, counts, sources, keys, toggleSet, ground, roving }) {
  const { state } = store;
  const root = make("div", { className: "wbx-maps" });
  let panels = [];
  let theme = null;
  let width = 0;

  function panel(source, at) {
    const base = make("canvas", { "aria-hidden": "true" });
    const top = make("canvas", { className: "wbx-top", "aria-hidden": "true" });
    const said = make("div", { className: "wbx-readout" });
    const name = `${source.title}${source.note ? `, ${source.note}` : ""}`;
    const stage = make("div", {
      className: "wbx-stage", tabIndex: -1, role: "application", "aria-roledescription": "map of heads",
      "aria-label": `${name}. Layers from bottom to top, heads from left to right. Arrow keys move, Enter locks, Space adds to the set.`,
    }, base, top);
    const element = make("figure", { className: "wbx-map" }, make("figcaption", { title: source.about ?? "" }, name, " ", make("small", {}, source.scale?.unit ?? "")), stage, said);
    const one = { source, element, stage, base, top, said, at, place: null };
    listen(one);
    return one;
  }

  function listen(one) {
    const local = (event) => {
      const box = one.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let drag = null;
    one.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const [x, y] = local(event);
      drag = { x, y, axis: one.place.axisAt(x, y), view: state.view, moved: false };
      one.stage.setPointerCapture(event.pointerId);
    });
    one.stage.addEventListener("pointermove", (event) => {
      const [x, y] = local(event);
      if (drag && Math.hypot(x - drag.x, y - drag.y) > 4) drag.moved = true;
      if (drag?.moved) dragged(one, drag, x, y);
      else store.set({ hover: one.place.cellAt(x, y) });
    });
    one.stage.addEventListener("pointerup", (event) => {
      const [x, y] = local(event);
      const was = drag;
      drag = null;
      store.set({ brush: null });
      if (was?.moved) {
        if (was.axis) brushed(one, was, x, y);
        return;
      }
      const cell = one.place.cellAt(x, y);
      if (!cell || one.source.status(cell)[0] === "outside") return;
      focusOn(one.at, false);
      one.stage.focus({ preventScroll: true });
      if (event.shiftKey || event.ctrlKey || event.metaKey) toggleSet(cell);
      else store.set({ head: cell, ...(one.source.side ? { criterion: one.source.side.criterion } : {}) });
    });
    one.stage.addEventListener("pointerleave", () => store.set({ hover: null }));
    one.stage.addEventListener("dblclick", () => store.set({ view: wholeWindow(one.source.shape) }));
    one.stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return; // a plain wheel scrolls the page
      event.preventDefault();
      zoom(one, one.place.cellAt(...local(event), true), (event.deltaY || event.deltaX) > 0 ? 1.3 : 1 / 1.3);
    }, { passive: false });
    one.stage.addEventListener("keydown", (event) => keys(event, one));
    one.stage.addEventListener("focus", () => focusOn(one.at, false));
  }

  // Dragging along an axis brushes layers or heads; dragging over the cells moves the window.
  function dragged(one, drag, x, y) {
    const { place } = one;
    if (drag.axis === "layer") return store.set({ brush: { map: one.at, box: [0, Math.min(y, drag.y), place.right, Math.abs(y - drag.y)] } });
    if (drag.axis === "head") return store.set({ brush: { map: one.at, box: [Math.min(x, drag.x), place.top, Math.abs(x - drag.x), place.height - place.top] } });
    shiftTo(one, drag.view, Math.round((y - drag.y) / place.h), -Math.round((x - drag.x) / place.w));
  }

  function shiftTo(one, view, up, right) {
    const [layers, heads] = one.source.shape;
    const [tall, wide] = [view.l1 - view.l0, view.h1 - view.h0];
    const l0 = clamp(view.l0 + up, 0, layers - tall);
    const h0 = clamp(view.h0 + right, 0, heads - wide);
    store.set({ view: { l0, l1: l0 + tall, h0, h1: h0 + wide } });
  }

  function brushed(one, drag, x, y) {
    const a = one.place.cellAt(drag.x, drag.y, true);
    const b = one.place.cellAt(x, y, true);
    const i = drag.axis === "layer" ? 0 : 1;
    const [low, high] = [Math.min(a[i], b[i]), Math.max(a[i], b[i]) + 1];
    store.set({ view: i === 0 ? { ...state.view, l0: low, l1: high } : { ...state.view, h0: low, h1: high } });
  }

  function zoom(one, about, factor) {
    const [layers, heads] = one.source.shape;
    const { view } = state;
    const grow = (low, high, all, centre) => {
      const size = clamp(Math.round((high - low) * factor), Math.min(4, all), all);
      const start = clamp(Math.round(centre - ((centre - low) / (high - low)) * size), 0, all - size);
      return [start, start + size];
    };
    const [l0, l1] = grow(view.l0, view.l1, layers, about[0]);
    const [h0, h1] = grow(view.h0, view.h1, heads, about[1]);
    store.set({ view: { l0, l1, h0, h1 } });
  }

  function viewOf(source) {
    const [layers, heads] = source.shape;
    const view = state.view ?? wholeWindow(source.shape);
    return { l0: Math.min(view.l0, layers - 1), l1: Math.min(view.l1, layers), h0: Math.min(view.h0, heads - 1), h1: Math.min(view.h1, heads) };
  }

  function drawCells() {
    width = root.clientWidth;
    if (!width || !panels.length) return;
    theme = themeOf(ground());
    const columns = clamp(Math.min(panels.length, Math.floor(width / Math.max(230, Math.min(420, 30 + 5 * panels[0].source.shape[1])))), 1, 4);
    root.style.setProperty("--wbx-columns", columns);
    const wide = Math.floor((width - 12 * (columns - 1)) / columns);
    for (const one of panels) {
      const view = viewOf(one.source);
      const height = heightFor(wide, [view.l1 - view.l0, view.h1 - view.h0], one.source.shape[0] > 40 ? 480 : 360);
      one.place = placed(wide, height, view);
      drawMap(penOf(one.base, wide, height), one.source, one.place, theme, { manifest: data.manifest, marks: state.marks, k: state.k, whole: one.source.shape });
      counts.cells += 1;
    }
    drawTops();
  }

  function drawTops() {
    for (const one of panels) {
      if (!one.place) continue;
      const { head, locked, heads, hover, brush } = state;
      drawFrames(penOf(one.top, one.place.width, one.place.height), one.place, theme, { head, locked, heads, hover, brush: brush?.map === one.at ? brush.box : null });
      const about = hover ?? head;
      const [words, why] = about ? one.source.readout(about) : ["", ""];
      one.said.textContent = about ? `${headName(about)}  ${words}` : "";
      one.said.title = why;
    }
    counts.frames += 1;
  }

  function focusOn(at, move = true) {
    if (!roving.one) roving.one = panels[0];
    const next = panels[(at + panels.length) % panels.length];
    for (const one of panels) one.stage.tabIndex = one === next ? 0 : -1;
    roving.one = next;
    if (move) next?.stage.focus();
  }

  const cells = nextFrame(drawCells);
  const tops = nextFrame(drawTops);
  new ResizeObserver(() => {
    if (root.clientWidth !== width) cells();
  }).observe(root);

  return {
    root, redraw: cells, frames: tops, focusOn,
    rebuild() {
      panels = sources().map(panel);
      root.replaceChildren(...panels.map((one) => one.element));
      focusOn(0, false);
      drawCells();
    },
    get panels() { return panels; },
    zoomBy(factor) {
      if (panels.length) zoom(panels[0], state.head, factor);
    },
  };
}
