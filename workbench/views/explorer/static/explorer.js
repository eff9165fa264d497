// The whole: controls, maps on the left, the chosen head on the right. What can be said from what is here is said at
// once; Python is asked when the choice has settled.
import { createBench, nextTable } from "./bench.js";
import { createCompare } from "./compare.js";
import { createData } from "./data.js";
import { createHeadCard } from "./details.js";
import { button, choice, fill, headName, labelled, make, offer, sameHead } from "./dom.js";
import { wholeWindow } from "./heatmap.js";
import { bytesOf, notebookHost, pageHost } from "./hosts.js";
import { createLooking } from "./looking.js";
import { createMapGrid, criterionSource } from "./maps.js";
import { createPrompts } from "./prompts.js";
import { saveView } from "./save.js";
import { CHOSEN, createStore, nextFrame, settled, subjectOf } from "./state.js";
import { createTrace } from "./trace.js";

const SETTLE = 150; // milliseconds without a change, after which Python is asked

function mount(el, host) {
  const data = createData(host.manifest, host.bytes);
  const { manifest } = data;
  const counts = { messages: 0, bytes: 0, cells: 0, frames: 0, cards: 0, compared: 0, stale: 0 };
  const answers = { prompts: new Map(), rows: new Map(), patterns: new Map(), sinks: new Map(), next: new Map(), replies: new Map(), lacking: manifest.lacking ?? "" };
  const store = createStore({
    k: 5, ...host.first, marks: true, by: "label", filters: {}, position: null, reply: null, box: null, hover: null, brush: null, threshold: null,
    view: null, tab: manifest.runs.length > 1 ? "compare" : "maps", maps: null, sides: manifest.runs.length > 1 ? [0, manifest.runs[0].projections.length] : [0, Math.min(1, manifest.runs[0].projections.length - 1)],
  });
  const { state } = store;
  checked(data, store);
  state.view = wholeWindow(data.shape(state.run));
  state.maps = data.run(state.run).criteria.filter((one) => one.scored).map((one) => one.name);

  const ground = () => root;
  const asked = new Map();
  const ask = (kind, body, buffers) => {
    if (host.live) asked.set(kind, host.ask(kind, body, counts, buffers));
  };
  ask.live = host.live;

  const live = make("div", { className: "wbx-sr", "aria-live": "polite" });
  const say = (words) => { live.textContent = words; toast.textContent = words; };
  const toast = make("div", { className: "wbx-toast", "aria-hidden": "true" });
  const status = make("div", { className: "wbx-error", role: "alert", hidden: true });
  const roving = { one: null };
  const shared = { store, data, ask, counts, ground, answers, roving, keys, toggleSet };
  const compare = createCompare(shared);
  const grid = createMapGrid({ ...shared, sources: () => (state.tab === "compare" ? compare.sources() : mapSources()) });
  const sides = () => (state.tab === "compare" ? state.sides.map((at) => compare.sides[at]) : [{ run: state.run, projection: state.projection, label: manifest.runs.length > 1 ? `${state.projection} masked, ${data.run(state.run).label}` : undefined }]);
  const card = (of, at) => createHeadCard({ ...shared, of, sideOf: () => sides()[at] });
  const cards = { head: card("head", 0), other: card("head", 1), locked: card("locked", 0) };
  const prompts = createPrompts(shared);
  const looking = createLooking(shared);
  const bench = createBench(shared);
  const traced = createTrace(shared);
  const next = make("section", { className: "wbx-block" });
  const controls = createControls();

  const left = make("div", { className: "wbx-left" }, controls.row, grid.root, legend(), compare.root, traced.root, provenance());
  const bar = make("div", { className: "wbx-split", role: "separator", "aria-orientation": "vertical", "aria-label": "width of the maps", tabIndex: 0, "aria-valuemin": 25, "aria-valuemax": 75, "aria-valuenow": 50 });
  const right = make("div", { className: "wbx-right" }, make("div", { className: "wbx-row wbx-acts" }, controls.acts), status, make("div", { className: "wbx-cards" }, Object.values(cards).map((one) => one.root)), prompts.root, looking.root, next, bench.root);
  const root = make("div", { className: `wbx${isDark() ? " wbx-dark" : ""}`, "data-lm-suppress-shortcuts": "true" }, heading(), make("div", { className: "wbx-body" }, left, bar, right), live, toast);
  fill(el, root);
  splitter();

  function heading() {
    const run = data.run(state.run);
    return make("div", { className: "wbx-header" }, make(host.live ? "h2" : "h1", {}, manifest.title), make("p", { className: "wbx-quiet" }, manifest.runs.length > 1 ? manifest.runs.map((one) => one.label).join(" beside ") : run.about),
      manifest.runs.flatMap((one) => one.caveats.map((words) => make("p", { className: "wbx-mind" }, `Mind: ${manifest.runs.length > 1 ? `${one.label}: ` : ""}${words}.`))));
  }

  // Where the numbers come from, to be read by who gets the page.
  function provenance() {
    const rows = manifest.runs.map((run) => [make("h3", {}, run.label), make("p", {}, run.about, run.split && run.split !== "all" ? ` Heads are scored on the split ${run.split}.` : ""),
      make("table", {}, make("tbody", {}, Object.entries(run.provenance).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name.replaceAll("_", " ")), make("td", {}, make("code", {}, value))))))]);
    const left = manifest.left_out?.length ? make("p", {}, `Left out to keep the file small: values on single prompts of ${manifest.left_out.join(", ")}.`) : null;
    return make("details", {}, make("summary", {}, "Where this comes from"), left, rows);
  }

  function legend() {
    const mark = (name, words) => make("span", {}, make("i", { className: `wbx-key wbx-key-${name}` }), words);
    return make("div", { className: "wbx-legend" }, mark("missing", "not computed"), mark("undefined", "undefined"), mark("excluded", "left out by the rule"), mark("uncertain", "interval of the difference holds 0 (large cells)"), make("span", {}, "1 … k: first heads by the rule. Drag an axis to brush, Ctrl-wheel zooms, drag moves, double-click shows all."));
  }

  function mapSources() {
    return state.maps.map((name) => criterionSource(data, { run: state.run, criterion: name, projection: state.projection }, state.column, state.rule, state.k));
  }

  function createControls() {
    const projection = choice([], "", (value) => store.set({ projection: value }));
    const column = choice(manifest.columns, state.column, (value) => store.set({ column: value }));
    const rule = choice(manifest.rules.map((one) => [one.name, one.name.replaceAll("_", " ")]), state.rule, (value) => store.set({ rule: value }));
    const k = make("input", { type: "number", min: 0, max: 50, value: state.k, onchange: () => store.set({ k: Math.max(0, Math.min(50, Number(k.value) || 0)) }) });
    const marks = make("input", { type: "checkbox", checked: true, onchange: () => store.set({ marks: marks.checked }) });
    const run = choice(manifest.runs.map((one, i) => [String(i), one.label]), String(state.run), (value) => store.set({ run: Number(value) }));
    const criteria = make("details", { className: "wbx-menu" }, make("summary", {}, "Criteria"), make("div", {}));
    const tab = button("", () => store.set({ tab: state.tab === "compare" ? "maps" : "compare" }), { "aria-pressed": "false" });
    const lock = button("Lock", () => toggleLock());
    const set = button("Add to set", () => toggleSet(state.head));
    const undo = button("↶", () => store.undo(), { title: "Undo (Ctrl+Z)", "aria-label": "undo" });
    const redo = button("↷", () => store.redo(), { title: "Redo (Ctrl+Shift+Z)", "aria-label": "redo" });
    const save = choice([["", "Save or copy …"], ["python", "copy the Python that shows this"], ...(host.live ? [] : [["link", "copy the link to this"]]), ["png", "this view as PNG"], ["svg", "this view as SVG"], ["csv", "these maps as CSV"], ["heads", "the set as heads.json"], ["guard", "copy the Python of the threshold as a detector"]], "", (kind) => {
      save.value = "";
      if (kind) saveView(kind, { maps: grid.panels, data, state, element: root, say });
    }, { "aria-label": "save or copy" });
    const sets = make("span", { className: "wbx-set" });
    const alone = [manifest.runs.length > 1 && labelled("run", run), labelled("masked", projection)].filter(Boolean); // of one side; two name theirs
    return {
      row: make("div", { className: "wbx-row" }, tab, compare.tools, alone, labelled("colour", column), labelled("number by", rule), labelled("first", k), criteria, labelled("marks", marks), button("+", () => grid.zoomBy(1 / 1.4), { "aria-label": "zoom in" }), button("−", () => grid.zoomBy(1.4), { "aria-label": "zoom out" })),
      acts: [undo, redo, lock, set, sets, save],
      show() {
        const about = data.run(state.run);
        offer(projection, about.projections.map((one) => [one, one]), state.projection);
        [column.value, rule.value, run.value, k.value] = [state.column, state.rule, String(state.run), String(state.k)];
        tab.textContent = state.tab === "compare" ? "Back to the maps" : "Compare two";
        tab.hidden = compare.sides.length < 2;
        tab.setAttribute("aria-pressed", String(state.tab === "compare"));
        compare.tools.hidden = compare.root.hidden = state.tab !== "compare";
        for (const one of [criteria, ...alone]) one.hidden = state.tab === "compare";
        fill(criteria.lastChild, about.criteria.map((one) => criterionBox(one)));
        lock.textContent = state.locked ? `Unlock ${headName(state.locked)}` : `Lock ${headName(state.head)}`;
        set.textContent = state.heads.some((one) => sameHead(one, state.head)) ? "Take from set" : "Add to set";
        fill(sets, state.heads.length ? [`${state.heads.length} in the set: `, state.heads.slice(0, 12).map((one) => button(`${headName(one)} ×`, () => toggleSet(one), { className: "wbx-small", "aria-label": `take ${headName(one)} from the set` })), state.heads.length > 1 && button("clear", () => store.set({ heads: [] }), { className: "wbx-small" })] : "");
        const can = store.can();
        [undo.disabled, redo.disabled] = [!can.undo, !can.redo];
      },
    };
  }

  function criterionBox(one) {
    const box = make("input", { type: "checkbox", checked: state.maps.includes(one.name), disabled: !one.scored && !host.live, onchange: () => {
      if (box.checked && !one.scored) {
        say(`Scoring ${one.title} …`);
        ask("score", { run: state.run, criterion: one.name, rule: state.rule, k: state.k });
      }
      store.set({ maps: box.checked ? [...state.maps, one.name] : state.maps.filter((name) => name !== one.name) });
    } });
    return labelled(one.scored ? one.title : `${one.title} (${host.live ? "scored when chosen" : "not in this file"})`, box);
  }

  function toggleLock() {
    store.set({ locked: state.locked ? null : state.head });
  }

  function toggleSet(head) {
    const has = state.heads.some((one) => sameHead(one, head));
    store.set({ heads: has ? state.heads.filter((one) => !sameHead(one, head)) : [...state.heads, head] });
  }

  function keys(event, panel) {
    const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e4], End: [0, 1e4], PageUp: [1e4, 0], PageDown: [-1e4, 0] }[event.key];
    const [layers, heads] = panel.source.shape;
    if (step && !event.ctrlKey && !event.metaKey) {
      const at = [0, 1].map((i) => Math.min([layers, heads][i] - 1, Math.max(0, state.head[i] + step[i])));
      store.set({ head: at, hover: null });
    } else if (event.key === "Enter") toggleLock();
    else if (event.key === " ") toggleSet(state.head);
    else if (event.key === "]" || event.key === "[") grid.focusOn(panel.at + (event.key === "]" ? 1 : -1));
    else if (event.key === "+" || event.key === "=") grid.zoomBy(1 / 1.4);
    else if (event.key === "-") grid.zoomBy(1.4);
    else if (event.key === "Escape") store.set({ view: wholeWindow(panel.source.shape) });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  root.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || /input|textarea/i.test(event.target.tagName)) return;
    if (event.shiftKey) store.redo();
    else store.undo();
    event.preventDefault();
    event.stopPropagation();
  });

  function splitter() {
    const set = (percent) => {
      const share = Math.min(75, Math.max(25, percent));
      root.style.setProperty("--wbx-share", `${share}%`);
      bar.setAttribute("aria-valuenow", String(Math.round(share)));
    };
    bar.addEventListener("pointerdown", (event) => {
      bar.setPointerCapture(event.pointerId);
      const move = (to) => {
        const box = root.getBoundingClientRect();
        set((100 * (to.clientX - box.left)) / box.width);
      };
      bar.addEventListener("pointermove", move);
      bar.addEventListener("pointerup", () => bar.removeEventListener("pointermove", move), { once: true });
    });
    bar.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -4, ArrowRight: 4 }[event.key];
      if (!step) return;
      set(Number(bar.getAttribute("aria-valuenow")) + step);
      event.preventDefault();
      event.stopPropagation();
    });
  }

  // What Python is asked about what is chosen now: one message, of what is not here yet.
  const settle = settled(() => {
    host.keep(Object.fromEntries(CHOSEN.map((name) => [name, state[name]])), counts);
    announce();
    if (!host.live) return;
    const side = { run: state.run, criterion: state.criterion, projection: state.projection };
    const heads = [state.head, state.locked].filter(Boolean);
    const wanted = {
      values: sides().flatMap(({ run, projection }) => heads
        .filter((head) => data.criterion(run, state.criterion)?.kind === "per prompt" && !data.values({ run, projection, criterion: state.criterion }, head))
        .map((head) => [run, ...head])),
      prompt: answers.prompts.has(subjectOf(state)) ? null : subjectOf(state),
      rows: heads.filter((head) => !answers.rows.has(rowKey(head))),
      next: state.reply || answers.next.has(nextKey()) ? null : state.head,
      stable: data.stable(side, state.rule, state.k) || !data.ranks(side, state.rule) ? null : [state.rule, state.k],
    };
    if (!manifest.asks) Object.assign(wanted, { prompt: null, rows: [], next: null });
    if (wanted.values.length || wanted.prompt || wanted.rows.length || wanted.next || wanted.stable) {
      const { run, criterion, projection, position } = state;
      ask("look", { side: { run, criterion, projection }, at: { prompt: subjectOf(state), position }, ...wanted });
    }
  }, SETTLE);

  const rowKey = (head) => `${subjectOf(state)}/${state.position ?? "last"}/${head[0]}`;
  const nextKey = () => `${state.prompt}/${state.head}/${state.projection}`;

  function announce() {
    const side = { run: state.run, criterion: state.criterion, projection: state.projection };
    const rank = data.rankWords(side, state.rule, state.k, state.head);
    live.textContent = `${headName(state.head)}. ${data.criterion(state.run, state.criterion)?.title ?? ""} ${data.valueWords(side, state.column, state.head).short}. ${rank.why}`;
  }

  function heard(reply, buffers) {
    if (reply.error !== undefined) {
      status.hidden = !reply.error;
      status.textContent = reply.error;
      return;
    }
    if (reply.serial === undefined && asked.get(reply.to) !== reply.id) { // a newer question of this kind was asked
      counts.stale += 1;
      if (!["values", "scores", "prompt"].includes(reply.kind)) return; // these stay true whatever is chosen now
    }
    const bytes = buffers?.[0];
    if (reply.kind === "values" || reply.kind === "scores") {
      data.merge(reply, bytes);
      if (reply.kind === "scores") rebuild();
      else {
        showCards();
        grid.frames();
      }
    } else if (reply.kind === "prompt") {
      answers.prompts.set(reply.prompt, { ...reply.about, picture: bytes?.byteLength ? bytes : null });
      prompts.show();
    } else if (reply.kind === "rows") {
      answers.rows.set(reply.key, new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)));
      looking.show();
    } else if (reply.kind === "pattern") {
      const steps = new Uint16Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
      answers.patterns.set(reply.key, Float32Array.from(steps, (step) => step / 65535));
      looking.show();
    } else if (reply.kind === "next") {
      answers.next.set(reply.key, reply.rows);
      showNext();
    } else if (reply.kind === "kept") say(reply.words);
    else if (reply.kind === "box") looking.showBox(reply);
    else if (reply.kind === "try") bench.heard(reply);
  }

  function showNext() {
    const rows = answers.next.get(nextKey());
    next.hidden = !manifest.asks;
    if (manifest.asks) fill(next, make("h3", {}, `Next token, with ${headName(state.head)} masked`), rows ? nextTable(rows) : make("p", { className: "wbx-quiet" }, "Masking the head …"));
  }

  function showCards() {
    cards.locked.root.hidden = !state.locked;
    cards.other.root.hidden = state.tab !== "compare";
    for (const one of Object.values(cards)) if (!one.root.hidden) one.show();
  }

  function details() {
    showCards();
    looking.show();
    showNext();
    bench.show();
  }

  function rebuild() {
    controls.show();
    grid.rebuild();
    if (state.tab === "compare") compare.show();
    details();
  }

  const detailsSoon = nextFrame(details);
  store.on(["head", "locked", "heads", "hover", "brush"], () => grid.frames());
  store.on(["box"], () => bench.show());
  store.on(["head"], () => traced.show());
  store.on(["head", "locked", "heads"], () => { controls.show(); detailsSoon(); });
  store.on(["hover", "head", "locked"], () => state.tab === "compare" && compare.frames());
  store.on(["projection", "column", "rule", "k", "maps", "tab", "run", "sides"], rebuild);
  store.on(["marks", "view"], () => grid.redraw());
  store.on(["criterion", "by"], () => { details(); if (state.tab === "compare") { grid.rebuild(); compare.show(); } });
  store.on(["prompt", "filters"], () => prompts.show());
  store.on(["prompt"], () => store.set({ box: null, position: null, reply: null }));
  store.on(["prompt", "position", "reply"], () => { showCards(); looking.show(); showNext(); bench.showStep(); });
  store.on(["run"], () => { checked(data, store); store.set({ view: wholeWindow(data.shape(state.run)) }); prompts.show(); });
  store.on([...CHOSEN, "position", "reply", "k"], () => settle());
  host.listen(heard, (patch) => {
    store.set(patch, { origin: "host" });
    checked(data, store);
  });
  watchTheme(() => { root.classList.toggle("wbx-dark", isDark()); grid.redraw(); details(); if (state.tab === "compare") compare.show(); });

  rebuild();
  prompts.show();
  settle();
  const handle = { state, store, counts, data, answers, grid, settle };
  el.workbench = handle;
  return handle;
}

// What was asked for from outside and is not there gives way to the first that is.
function checked(data, store) {
  const { state } = store;
  const run = data.run(state.run) ?? data.run(0);
  const at = data.run(state.run) ? state.run : 0;
  const within = (head) => head && head[0] < run.layers && head[1] < run.heads;
  const scored = run.criteria.filter((one) => one.scored).map((one) => one.name);
  const patch = { run: at };
  if (!within(state.head)) patch.head = [0, 0];
  if (state.locked && !within(state.locked)) patch.locked = null;
  if (!state.heads.every(within)) patch.heads = state.heads.filter(within);
  if (!scored.includes(state.criterion)) patch.criterion = scored[0];
  if (!run.projections.includes(state.projection)) patch.projection = run.projections[0];
  if (!data.manifest.rules.some((one) => one.name === state.rule)) patch.rule = data.manifest.rules[0].name;
  if (!data.manifest.columns.some(([name]) => name === state.column)) patch.column = data.manifest.columns[0][0];
  if (!run.prompts.id.includes(state.prompt)) patch.prompt = run.prompts.id[0];
  if (state.maps) patch.maps = state.maps.filter((name) => run.criteria.some((one) => one.name === name));
  store.set(patch, { step: false });
}

// Notebooks say on the body (JupyterLab, VS Code) or on the whole (Colab) that they are dark; a page follows the system.
function isDark() {
  const { body } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.dataset.vscodeThemeKind) return /dark|high-contrast$/.test(body.dataset.vscodeThemeKind);
  if (!body.classList.contains("wbx-page")) return document.documentElement.getAttribute("theme") === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function watchTheme(act) {
  const watched = new MutationObserver(act);
  watched.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind"] });
  watched.observe(document.documentElement, { attributes: true, attributeFilter: ["theme"] });
  for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)", "(forced-colors: active)"]) matchMedia(query).addEventListener("change", act);
}

export function render({ model, el }) {
  mount(el, notebookHost(model));
}

export function openPage() {
  const read = (id) => document.getElementById(id).textContent;
  mount(document.getElementById("workbench"), pageHost(JSON.parse(read("manifest")), bytesOf(read("arrays"))));
}
