// One head's whole attention pattern on a prompt, how far it looks back, and the positions that soak attention up.
import { clamp, fill, headName, make, percent } from "./dom.js";
import { ABSOLUTE, lightOf } from "./overlay.js";
import { penOf, themeOf } from "./pen.js";
import { subjectOf } from "./state.js";

const SINK = 0.3; // mean attention over the queries that see a key; Gu et al., arXiv 2410.10781, take the same bound

// [query, key] weights: mean attention each key gets from itself and later queries, and shares by distance (pictures may
// be seen both ways).
export function summaries(cells, n) {
  const byKey = new Float64Array(n);
  const byDistance = new Float64Array(n);
  for (let q = 0; q < n; q += 1) {
    for (let k = 0; k < n; k += 1) {
      if (k <= q) byKey[k] += cells[q * n + k] / (n - k);
      byDistance[Math.abs(q - k)] += cells[q * n + k] / n;
    }
  }
  return { byKey, byDistance, sinks: [...byKey.keys()].filter((k) => byKey[k] > SINK && n - k > 3) };
}

export function createPattern({ store, ask, ground, answers }) {
  const { state } = store;
  const canvas = make("canvas", { role: "img" });
  const histogram = make("canvas", { role: "img" });
  const said = make("div", { className: "wbx-readout" });
  const sinks = make("div", { className: "wbx-quiet" });
  const root = make("details", { ontoggle: () => root.open && show() }, make("summary", {}, "Whole pattern, distances and sinks"),
    make("div", { className: "wbx-pictures" }, make("figure", {}, canvas, said), make("figure", {}, histogram, make("figcaption", {}, "share of attention by distance back"))), sinks);
  let now = null;
  const key = () => `${subjectOf(state)}/${state.head}`;

  function show() {
    if (!root.open) return;
    const at = answers.prompts.get(subjectOf(state));
    const cells = answers.patterns.get(key());
    if (!at || !cells) {
      now = null;
      ask("pattern", { prompt: subjectOf(state), head: state.head });
      return;
    }
    const n = at.tokens.length;
    now = { n, cells, at, ...summaries(cells, n) };
    answers.sinks.set(key(), now.sinks);
    draw();
  }

  function draw() {
    const { n, cells, at } = now;
    const theme = themeOf(ground());
    const side = Math.min(260, Math.max(120, root.clientWidth - 20));
    const pen = penOf(canvas, side, side);
    const grid = new ImageData(n, n);
    for (let i = 0; i < n * n; i += 1) {
      const light = lightOf(ABSOLUTE, cells[i]);
      grid.data.set([40 + 190 * light, 60 + 100 * light, 140 - 110 * light, 255], 4 * i);
    }
    const source = make("canvas", { width: n, height: n });
    source.getContext("2d").putImageData(grid, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(source, 0, 0, side, side);
    canvas.setAttribute("aria-label", `attention pattern of ${headName(state.head)}, ${n} by ${n} positions; rows look, columns are looked at`);
    bars(theme);
    fill(sinks, now.sinks.length ? `Attention sinks (over ${percent(SINK)} of the attention of later positions, on average): ${now.sinks.map((k) => `${k} ${at.tokens[k]} ${percent(now.byKey[k])}`).join(", ")}` : "No attention sink on this prompt.");
  }

  function bars(theme) {
    const [width, height] = [260, 130];
    const pen = penOf(histogram, width, height);
    const { byDistance, n } = now;
    const most = Math.max(...byDistance);
    histogram.setAttribute("aria-label", `attention by distance: ${percent(byDistance[0])} on the position itself, ${percent(byDistance[1] ?? 0)} on the one before`);
    pen.fillStyle = theme.unsafe;
    const wide = (width - 34) / n;
    byDistance.forEach((share, i) => pen.fillRect(32 + i * wide, height - 18 - ((height - 30) * share) / most, Math.max(1, wide - 0.5), ((height - 30) * share) / most));
    pen.fillStyle = theme.quiet;
    pen.font = `10px ${theme.font}`;
    pen.textAlign = "right";
    pen.fillText(percent(most), 30, 14);
    pen.textAlign = "left";
    pen.fillText("0", 32, height - 5);
    pen.textAlign = "right";
    pen.fillText(String(n - 1), width, height - 5);
  }

  canvas.addEventListener("pointermove", (event) => {
    if (!now) return;
    const box = canvas.getBoundingClientRect();
    const at = (share) => clamp(Math.floor(share * now.n), 0, now.n - 1);
    const [q, k] = [at((event.clientY - box.top) / box.height), at((event.clientX - box.left) / box.width)];
    said.textContent = `${q} ${now.at.tokens[q]} → ${k} ${now.at.tokens[k]}: ${percent(now.cells[q * now.n + k])}`;
  });
  canvas.addEventListener("click", (event) => {
    if (!now) return;
    const box = canvas.getBoundingClientRect();
    const q = clamp(Math.floor(((event.clientY - box.top) / box.height) * now.n), 0, now.n - 1);
    store.set({ position: q === now.n - 1 ? null : q });
  });
  return { root, show };
}
