// One head's value on every prompt, by class or by family: the nearest point is read, clicked and walked to.
import { clamp, make, number } from "./dom.js";
import { penOf, themeOf } from "./pen.js";
import { density, extent, linspace, ticks } from "./statistics.js";
import { createThreshold, publishedOf, splitOf } from "./threshold.js";

const LABELS = ["unsafe", "safe"];

// Where each prompt's point lies: x by its value, y by its class or its family with a jitter that never changes.
export function pointsOf(values, prompts, by) {
  const families = by === "label" ? [] : [...new Set(prompts[by])].sort();
  const points = [];
  values.forEach((value, i) => {
    if (!Number.isFinite(value)) return;
    const label = prompts.label[i];
    const row = families.length ? families.indexOf(prompts[by][i]) : LABELS.indexOf(label);
    points.push({ value, label, i, row, jitter: ((i * 2654435761) % 1000) / 1000 - 0.5 });
  });
  return { points, families };
}

export function createDistribution({ onPrompt, onThreshold, onKeep, ground }) {
  const canvas = make("canvas", {
    className: "wbx-distribution", tabIndex: 0, role: "application", "aria-roledescription": "distribution",
    "aria-label": "Values of this head on every prompt. Left and right walk from prompt to prompt.",
  });
  const said = make("div", { className: "wbx-readout" });
  const threshold = createThreshold({ ground, onKeep, onMove(bound) {
    now.bound = bound;
    onThreshold(bound);
    draw();
  } });
  const root = make("div", { className: "wbx-block" }, canvas, said, threshold.root);
  let now = null;
  let place = null;
  let hover = null;

  function show(next) {
    now = next;
    hover = null;
    const known = next.values && next.points.length;
    threshold.root.hidden = true;
    if (!known) {
      canvas.hidden = true;
      said.textContent = next.why;
      return;
    }
    canvas.hidden = false;
    const seen = next.points.map((p) => p.value);
    const parts = splitOf(next.points, next.prompts);
    const published = next.larger ? publishedOf(parts) : null;
    const [low, high] = extent(published === null ? seen : [...seen, published]);
    const room = 0.05 * (high - low) || 0.5;
    now = { ...next, low: low - room, high: high + room, published, parts, bound: next.bound ?? published };
    if (next.larger) threshold.show(now);
    draw();
  }

  function draw() {
    if (!now?.points?.length || canvas.hidden) return;
    const theme = themeOf(ground());
    const rows = now.families.length;
    const width = Math.max(220, root.clientWidth);
    const left = rows ? Math.min(120, width * 0.28) : 12;
    const body = rows ? Math.max(110, 24 * rows) : 130;
    const top = 22;
    const foot = top + body;
    const pen = penOf(canvas, width, foot + 32);
    const x = (value) => left + ((value - now.low) / (now.high - now.low)) * (width - left - 12);
    const y = (p) => (rows ? top + (body * (p.row + 0.5 + 0.55 * p.jitter)) / rows : foot - 34 + 17 * p.row + 5 * p.jitter);
    place = { x, y };
    axis(pen, theme, x, top, foot, left, width);
    legend(pen, theme, left);
    if (!rows) LABELS.forEach((label) => curve(pen, theme, label, x, foot - 46, body - 56));
    else now.families.forEach((name, i) => {
      pen.fillStyle = theme.text;
      pen.textAlign = "right";
      pen.fillText(clip(pen, name || "(none)", left - 10), left - 8, top + (body * (i + 0.5)) / rows + 4);
    });
    pen.globalAlpha = now.points.length > 400 ? 0.35 : 0.65;
    for (const p of now.points) {
      pen.fillStyle = theme[p.label];
      pen.beginPath();
      if (p.label === "safe") pen.arc(x(p.value), y(p), 2.6, 0, 7); // the classes differ in shape, too
      else {
        pen.moveTo(x(p.value), y(p) - 3.4);
        pen.lineTo(x(p.value) + 3.4, y(p));
        pen.lineTo(x(p.value), y(p) + 3.4);
        pen.lineTo(x(p.value) - 3.4, y(p));
      }
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (now.bound !== null && now.larger) line(pen, theme, x(now.bound), top - 4, foot, [5, 3]);
    ring(pen, theme, now.points.find((p) => p.i === now.prompt), theme.mark);
    ring(pen, theme, hover, theme.text);
    words();
  }

  function line(pen, theme, at, from, to, dash) {
    pen.setLineDash(dash);
    pen.strokeStyle = theme.text;
    pen.lineWidth = 1.4;
    pen.beginPath();
    pen.moveTo(at, from);
    pen.lineTo(at, to);
    pen.stroke();
    pen.setLineDash([]);
  }

  function ring(pen, theme, point, colour) {
    if (!point) return;
    pen.strokeStyle = colour;
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(place.x(point.value), place.y(point), 6, 0, 7);
    pen.stroke();
  }

  function axis(pen, theme, x, top, foot, left, width) {
    pen.font = `11px ${theme.font}`;
    pen.lineWidth = 1;
    pen.textAlign = "center";
    for (const tick of ticks(now.low, now.high, Math.max(2, Math.floor((width - left) / 70)))) {
      pen.strokeStyle = theme.line;
      pen.beginPath();
      pen.moveTo(x(tick), top);
      pen.lineTo(x(tick), foot);
      pen.stroke();
      pen.fillStyle = theme.quiet;
      pen.fillText(number(tick), x(tick), foot + 13);
    }
    pen.fillStyle = theme.quiet;
    pen.fillText(now.axis, (left + width) / 2, foot + 27);
  }

  function legend(pen, theme, left) {
    pen.textAlign = "left";
    LABELS.forEach((label, i) => {
      pen.fillStyle = theme[label];
      pen.fillRect(left + 110 * i, 3, 10, 10);
      pen.fillStyle = theme.text;
      pen.fillText(`${label} (n = ${now.points.filter((p) => p.label === label).length})`, left + 110 * i + 14, 12);
    });
  }

  function curve(pen, theme, label, x, floor, tall) {
    const values = now.points.filter((p) => p.label === label).map((p) => p.value);
    const [low, high] = extent(values);
    const at = linspace(low - 0.06 * (high - low), high + 0.06 * (high - low), 90);
    const heights = density(values, at);
    if (!heights) return;
    const most = Math.max(...heights);
    pen.beginPath();
    pen.moveTo(x(at[0]), floor);
    at.forEach((v, i) => pen.lineTo(x(v), floor - (tall * heights[i]) / most));
    pen.lineTo(x(at.at(-1)), floor);
    pen.fillStyle = pen.strokeStyle = theme[label];
    pen.globalAlpha = 0.14;
    pen.fill();
    pen.globalAlpha = 1;
    pen.lineWidth = 1.8;
    pen.stroke();
  }

  function words() {
    const point = hover ?? now.points.find((p) => p.i === now.prompt);
    said.textContent = point ? `${now.prompts.id[point.i]}: ${number(point.value)} (${point.label})` : "";
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const [ex, ey] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    for (const p of now.points) {
      const far = Math.hypot(place.x(p.value) - ex, place.y(p) - ey);
      if (far < 22 && (!best || far < best.far)) best = { far, p };
    }
    return best?.p ?? null;
  }

  canvas.addEventListener("pointermove", (event) => {
    const next = nearest(event);
    if (next === hover) return;
    hover = next;
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    hover = null;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) onPrompt(point.i);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const order = [...now.points].sort((a, b) => a.value - b.value);
    const at = order.findIndex((p) => p.i === now.prompt);
    onPrompt(order[clamp(at < 0 ? 0 : at + step, 0, order.length - 1)].i);
  });
  let wide = 0;
  new ResizeObserver(() => {
    if (root.clientWidth === wide) return;
    wide = root.clientWidth;
    draw();
  }).observe(root);
  return { root, show, draw };
}

function clip(pen, text, width) {
  let shown = text;
  while (shown.length > 1 && pen.measureText(shown).width > width) shown = shown.slice(0, -1);
  return shown === text ? text : `${shown.slice(0, -1)}…`;
}
