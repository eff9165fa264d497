// Where a head looks from any position of a prompt: over the picture, over the words, and as a whole pattern.
import { button, fill, headName, labelled, make, percent, sameHead } from "./dom.js";
import { ABSOLUTE, drawOverlay, lightOf, rasterOf, tokensAt, tokensInside } from "./overlay.js";
import { createPattern } from "./pattern.js";
import { themeOf } from "./pen.js";
import { subjectOf } from "./state.js";
import { createStrip } from "./strip.js";

export function createLooking({ store, data, ask, ground, answers }) {
  const { state } = store;
  const note = make("p", { className: "wbx-quiet" });
  const stages = { head: stage("head"), locked: stage("locked") };
  const strip = createStrip({ onToken: (i) => store.set({ position: i === prompt().tokens.length - 1 ? null : i }), onHover: (i) => linkedToken(i) });
  const where = make("div", { className: "wbx-row" });
  const thumbs = make("div", { className: "wbx-thumbs" });
  const boxed = make("div", {});
  const bar = scaleBar();
  const veil = make("input", { type: "range", min: 0, max: 100, value: 85, "aria-label": "veil", oninput: draw });
  const own = make("input", { type: "checkbox", onchange: draw });
  const pattern = createPattern({ store, data, ask, ground, answers });
  const body = make("div", {},
    where, make("div", { className: "wbx-pictures" }, stages.head.root, stages.locked.root),
    make("div", { className: "wbx-row wbx-picture-tools" }, bar.root, labelled("veil", veil), labelled("each head's own scale", own)),
    boxed, strip.root, make("details", { ontoggle: (event) => event.target.open && drawThumbs() }, make("summary", {}, "All heads of the layer"), thumbs), pattern.root);
  const root = make("section", { className: "wbx-block" }, make("h3", {}, "Where it looks"), note, body);
  const pictures = new Map();

  function stage(of) {
    const canvas = make("canvas", { className: "wbx-picture", role: "img" });
    const said = make("figcaption", {});
    const one = { of, canvas, said, root: make("figure", {}, canvas, said), drag: null };
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      one.drag = at(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => hovered(one, at(event)));
    canvas.addEventListener("pointerup", (event) => {
      const [from, to] = [one.drag, at(event)];
      one.drag = null;
      if (!from) return;
      if (Math.hypot(to[0] - from[0], to[1] - from[1]) > 0.04) askBox(from, to);
      else lookFrom(to);
    });
    canvas.addEventListener("pointerleave", () => {
      caption(one);
      drawWords();
    });
    return one;
  }

  const prompt = () => answers.prompts.get(subjectOf(state));
  const rowsOf = (head) => answers.rows.get(`${subjectOf(state)}/${state.position ?? "last"}/${head?.[0]}`);
  const patternOf = (head) => answers.patterns.get(`${subjectOf(state)}/${head}`);

  // Weights of one head on every position, and on the image tokens alone.
  function weightsOf(head) {
    const rows = rowsOf(head);
    const at = prompt();
    if (!rows || !at || !head) return null;
    const all = rows.subarray(head[1] * at.tokens.length, (head[1] + 1) * at.tokens.length);
    return { all, image: at.image.map((position) => all[position]) };
  }

  function size(at, most = 230) {
    const scale = most / Math.max(...at.size);
    return at.size.map((side) => Math.max(24, Math.round(side * scale)));
  }

  function show() {
    const at = prompt();
    note.textContent = ask.live ? (answers.lacking || (at ? "" : "Reading the prompt …")) : "Attention needs the model: wb.explore(run, model=model).";
    body.hidden = !at || !rowsOf(state.head);
    note.hidden = !note.textContent;
    if (body.hidden) return;
    draw();
    drawWords();
    pattern.show();
    if (thumbs.parentElement.open) drawThumbs();
  }

  function draw() {
    const at = prompt();
    if (!at || body.hidden) return;
    const has = Boolean(at.picture);
    body.querySelector(".wbx-pictures").hidden = body.querySelector(".wbx-picture-tools").hidden = !has;
    const reply = answers.replies.get(state.reply);
    const step = reply && state.position !== null && state.position >= reply.first ? state.position - reply.first : -1;
    const from = step >= 0 && step < reply.tokens.length ? `step ${step + 1} of the ${reply.side === "base" ? "plain" : "masked"} reply, which chose “${reply.tokens[step]}”`
      : state.position === null ? `the last position of the ${reply ? "reply" : "prompt"}` : `position ${state.position} (${at.tokens[state.position]})`;
    fill(where, make("span", {}, `From ${from}.`), (state.reply || state.position !== null) && button(reply ? "back to the prompt" : "back to the last", () => store.set({ position: null, reply: null }), { className: "wbx-small" }));
    if (!has) return;
    picture(at, () => {
      for (const one of Object.values(stages)) {
        const head = state[one.of];
        const weights = weightsOf(head);
        one.root.hidden = !weights;
        if (!weights) continue;
        const [width, height] = size(at);
        one.weights = weights;
        drawOverlay(one.canvas, pictures.get(subjectOf(state)), at.boxes && rasterOf(weights.image, at.boxes), { width, height, veil: veil.value / 100, scale: scaleOf(weights) });
        one.canvas.setAttribute("aria-label", `attention of ${headName(head)} over the picture`);
        caption(one);
      }
      bar.show(own.checked && stages.head.weights ? scaleOf(stages.head.weights) : ABSOLUTE);
    });
  }

  function scaleOf(weights) {
    const most = Math.max(...weights.image, ABSOLUTE.low * 2);
    return own.checked ? { low: most / 500, high: most } : ABSOLUTE;
  }

  function caption(one) {
    const at = prompt();
    if (!at || !one.weights) return;
    const sum = one.weights.image.reduce((a, b) => a + b, 0);
    const unknown = at.boxes ? "" : " The family's layout of this picture is not known, so no place is marked.";
    one.said.textContent = `${headName(state[one.of])}: ${percent(sum)} on the picture.${unknown}`;
  }

  function hovered(one, [x, y]) {
    const at = prompt();
    if (!at?.boxes || !one.weights) return;
    const tokens = tokensAt(at.boxes, x, y);
    if (!tokens.length) {
      drawWords();
      return caption(one);
    }
    const sum = tokens.reduce((total, token) => total + one.weights.image[token], 0);
    const linked = one.of === "head" && drawWords(tokens.map((token) => at.image[token]));
    one.said.textContent = `${headName(state[one.of])}: ${percent(sum)} here${tokens.length > 1 ? `, on ${tokens.length} tokens that overlap` : ""}.${linked ? " The words below: what each gives to this place." : ""}`;
  }

  // With the whole pattern at hand, a word under the pointer shows where it looks, without being chosen.
  function linkedToken(i) {
    const [at, cells, one] = [prompt(), patternOf(state.head), stages.head];
    if (!at?.picture || !cells?.length || !one.weights) return;
    const n = at.tokens.length;
    const image = i === null ? one.weights.image : at.image.map((position) => cells[i * n + position]);
    const [width, height] = size(at);
    drawOverlay(one.canvas, pictures.get(subjectOf(state)), at.boxes && rasterOf(image, at.boxes), { width, height, veil: veil.value / 100, scale: scaleOf({ image }) });
    if (i === null) caption(one);
    else one.said.textContent = `${headName(state.head)}: “${at.tokens[i]}” gives the picture ${percent(image.reduce((a, b) => a + b, 0))}.`;
  }

  function lookFrom([x, y]) {
    const at = prompt();
    const token = at?.boxes && tokensAt(at.boxes, x, y)[0];
    if (token !== undefined && token !== null) store.set({ position: at.image[token] });
  }

  function askBox([x0, y0], [x1, y1]) {
    const at = prompt();
    if (!at?.boxes) return;
    const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    store.set({ box });
    const keys = tokensInside(at.boxes, box).map((token) => at.image[token]);
    if (keys.length) ask("box", { prompt: subjectOf(state), position: state.position, keys });
  }

  function showBox({ heads, shares, tokens }) {
    fill(boxed, make("div", { className: "wbx-row" }, make("span", {}, `Most attention to the box (${tokens} tokens):`),
      heads.map((head, i) => button(`${headName(head)} ${percent(shares[i])}`, () => store.set({ head }), { className: "wbx-small" })),
      button("clear", () => {
        store.set({ box: null });
        fill(boxed);
      }, { className: "wbx-small" })));
  }

  function picture(at, then) {
    const id = subjectOf(state);
    if (pictures.has(id) || !at.picture) return then();
    const image = new Image();
    image.onload = () => {
      pictures.set(id, image);
      if (subjectOf(state) === id) then();
    };
    image.src = URL.createObjectURL(new Blob([at.picture], { type: at.type }));
  }

  // Shaded by what the chosen position gives them; or by what each gives to some positions, where the pattern says so.
  function drawWords(to = null) {
    const at = prompt();
    const weights = weightsOf(state.head);
    const cells = to && patternOf(state.head);
    if (!at || !weights || (to && !cells?.length)) return false;
    const n = at.tokens.length;
    const given = cells && at.tokens.map((_, q) => to.reduce((sum, k) => sum + cells[q * n + k], 0));
    strip.show({
      id: subjectOf(state), tokens: at.tokens, image: at.image, weights: given ?? weights.all, looks: given ? null : state.position ?? n - 1,
      sinks: new Set(answers.sinks.get(`${subjectOf(state)}/${state.head}`) ?? []), first: answers.replies.get(state.reply)?.first ?? n,
    });
    return Boolean(given);
  }

  function drawThumbs() {
    const at = prompt();
    const rows = rowsOf(state.head);
    if (!at || !rows) return;
    const n = rows.length / at.tokens.length;
    const [width, height] = at.picture ? size(at, 72) : [72, 12];
    picture(at, () => fill(thumbs, Array.from({ length: n }, (_, head) => {
      const weights = weightsOf([state.head[0], head]);
      const canvas = make("canvas", { "aria-hidden": "true" });
      drawOverlay(canvas, pictures.get(subjectOf(state)), at.boxes && rasterOf(weights.image, at.boxes), { width, height, veil: veil.value / 100, scale: scaleOf(weights) });
      const one = [state.head[0], head];
      return make("button", { type: "button", className: sameHead(one, state.head) ? "wbx-on" : "", onclick: () => store.set({ head: one }) }, canvas, make("small", {}, `${headName(one)} ${percent(weights.image.reduce((a, b) => a + b, 0))}`));
    })));
  }

  // The one scale, with its numbers.
  function scaleBar() {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const element = make("span", { className: "wbx-field" }, "attention a place", canvas);
    return {
      root: element,
      show(scale) {
        const theme = themeOf(ground());
        const width = 170;
        drawOverlay(canvas, null, null, { width, height: 26 });
        const pen = canvas.getContext("2d");
        for (let i = 0; i < 100; i += 1) {
          const grey = Math.round(20 + (235 * i) / 99);
          pen.fillStyle = `rgb(${grey} ${grey} ${grey})`;
          pen.fillRect((i * width) / 100, 0, width / 100 + 0.5, 9);
        }
        pen.fillStyle = theme.quiet;
        pen.font = `10px ${theme.font}`;
        for (const [value, align] of [[scale.low, "left"], [Math.sqrt(scale.low * scale.high), "center"], [scale.high, "right"]]) {
          pen.textAlign = align;
          pen.fillText(percent(value), lightOf(scale, value) * width, 20);
        }
      },
    };
  }

  return { root, show, draw, showBox };
}
