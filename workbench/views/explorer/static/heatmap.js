// One layer × head map: what is drawn, where a cell lies, and which cell lies under a point. Layer 0 is at the bottom.
import { clamp, number } from "./dom.js";
import { inkOn, shade, shareOf } from "./pen.js";

const EDGE = { left: 30, top: 6, right: 46, bottom: 30 };

export const wholeWindow = ([layers, heads]) => ({ l0: 0, l1: layers, h0: 0, h1: heads });

// Where the cells lie in a drawing of this size, for a window of layers l0…l1 and heads h0…h1.
export function placed(width, height, view) {
  const w = (width - EDGE.left - EDGE.right) / (view.h1 - view.h0);
  const h = (height - EDGE.top - EDGE.bottom) / (view.l1 - view.l0);
  return {
    width, height, view, w, h, left: EDGE.left, top: EDGE.top, right: width - EDGE.right, bottom: height - EDGE.bottom,
    corner: ([layer, head]) => [EDGE.left + (head - view.h0) * w, EDGE.top + (view.l1 - 1 - layer) * h],
    shows: ([layer, head]) => layer >= view.l0 && layer < view.l1 && head >= view.h0 && head < view.h1,
    // The cell under a point; the nearest one where `near` and the point lies outside.
    cellAt(x, y, near = false) {
      const head = Math.floor((x - EDGE.left) / w) + view.h0;
      const layer = view.l1 - 1 - Math.floor((y - EDGE.top) / h);
      if (near) return [clamp(layer, view.l0, view.l1 - 1), clamp(head, view.h0, view.h1 - 1)];
      const cell = [layer, head];
      return placedShows(view, cell) ? cell : null;
    },
    axisAt: (x, y) => (x < EDGE.left && y < height - EDGE.bottom ? "layer" : y > height - EDGE.bottom && x > EDGE.left ? "head" : null),
  };
}

const placedShows = (view, [layer, head]) => layer >= view.l0 && layer < view.l1 && head >= view.h0 && head < view.h1;

// A map's height for a width: cells no taller than wide, and no drawing taller than `most`.
export function heightFor(width, [layers, heads], most) {
  const cell = (width - EDGE.left - EDGE.right) / heads;
  return Math.round(clamp(Math.min(cell, 26) * layers, Math.min(90, most), most)) + EDGE.top + EDGE.bottom;
}

// `source` says of each head its value, its status, and whether it is left out or uncertain.
export function drawMap(pen, source, place, theme, { manifest, marks = true, k = 5, whole }) {
  const { view, w, h } = place;
  const gap = Math.min(w, h) >= 9 ? 1 : 0;
  for (let layer = view.l0; layer < view.l1; layer += 1) {
    for (let head = view.h0; head < view.h1; head += 1) {
      const cell = [layer, head];
      // On whole pixels: between halves of pixels the ground would show as a grid.
      const [x, y, right, low] = [...place.corner(cell), ...place.corner([layer - 1, head + 1])].map(Math.round);
      const [wide, tall] = [right - x - gap, low - y - gap];
      const kind = source.status(cell)[0];
      if (kind === "known") {
        pen.fillStyle = shade(manifest, source.scale, source.value(cell));
        pen.fillRect(x, y, wide, tall);
        if (marks) mark(pen, source, cell, x, y, wide, tall, theme);
      } else if (kind !== "outside") empty(pen, kind, x, y, wide, tall, theme);
    }
  }
  if (marks) numbers(pen, source, place, theme, manifest, k);
  axes(pen, place, theme);
  if (source.scale) bar(pen, source.scale, place, theme, manifest);
  if (whole && (view.l1 - view.l0 < whole[0] || view.h1 - view.h0 < whole[1])) minimap(pen, place, whole, theme);
}

// Hatched: not computed. Dotted: undefined.
function empty(pen, kind, x, y, w, h, theme) {
  pen.fillStyle = theme.line;
  pen.globalAlpha = 0.35;
  pen.fillRect(x, y, w, h);
  pen.globalAlpha = 1;
  pen.strokeStyle = pen.fillStyle = theme.quiet;
  pen.lineWidth = 1;
  pen.beginPath();
  if (kind === "undefined") {
    pen.arc(x + w / 2, y + h / 2, Math.min(w, h, 8) / 5, 0, 7);
    pen.fill();
  } else {
    pen.moveTo(x, y + h);
    pen.lineTo(x + w, y);
    pen.stroke();
  }
}

// A notch in the corner: the rule leaves the head out. A ring: the interval of its difference holds zero.
function mark(pen, source, cell, x, y, w, h, theme) {
  const size = Math.min(w, h);
  const ink = size >= 5 ? inkOn(shadeNow(pen)) : theme.mark;
  if (source.excluded(cell) && size >= 3) {
    const notch = Math.min(7, size / 1.8);
    pen.fillStyle = theme.back;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x + notch, y);
    pen.lineTo(x, y + notch);
    pen.closePath();
    pen.fill();
  }
  if (size >= 11 && source.uncertain(cell)) {
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.55;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.arc(x + w - 4, y + h - 4, 1.8, 0, 7);
    pen.stroke();
    pen.globalAlpha = 1;
  }
}

const shadeNow = (pen) => (/^#[0-9a-f]{6}$/i.test(pen.fillStyle) ? pen.fillStyle : "#888888");

function numbers(pen, source, place, theme, manifest, k) {
  const size = Math.min(place.w, place.h);
  pen.textAlign = "center";
  source.first(k).forEach((cell, i) => {
    if (!place.shows(cell)) return;
    const [x, y] = place.corner(cell);
    const [cx, cy] = [x + place.w / 2, y + place.h / 2];
    pen.font = `bold ${size >= 14 ? 11 : 10}px ${theme.font}`;
    if (size < 14) {  // too small for a number inside: it stands on a patch of its own
      pen.fillStyle = theme.back;
      pen.globalAlpha = 0.85;
      pen.beginPath();
      pen.arc(cx, cy, 7.5, 0, 7);
      pen.fill();
      pen.globalAlpha = 1;
      pen.fillStyle = theme.text;
    } else pen.fillStyle = source.status(cell)[0] === "known" ? inkOn(shade(manifest, source.scale, source.value(cell))) : theme.text;
    pen.fillText(String(i + 1), cx, cy + 4);
  });
}

// At most nine numbers along an axis, of layers and heads that are shown.
export function steps(low, high) {
  const step = [1, 2, 4, 8, 16, 32, 64, 128, 256].find((one) => high - low <= 9 * one);
  const out = [];
  for (let i = Math.ceil(low / step) * step; i < high; i += step) out.push(i);
  return out;
}

function axes(pen, place, theme) {
  const { view, w, h } = place;
  pen.fillStyle = theme.quiet;
  pen.font = `11px ${theme.font}`;
  pen.textAlign = "right";
  for (const layer of steps(view.l0, view.l1)) pen.fillText(String(layer), place.left - 5, place.corner([layer, 0])[1] + h / 2 + 4);
  pen.textAlign = "center";
  for (const head of steps(view.h0, view.h1)) pen.fillText(String(head), place.corner([0, head])[0] + w / 2, place.bottom + 13);
  pen.fillText("head", (place.left + place.right) / 2, place.bottom + 26);
  pen.save();
  pen.translate(9, (place.top + place.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("layer", 0, 0);
  pen.restore();
}

function bar(pen, scale, place, theme, manifest) {
  const x = place.right + 7;
  const tall = place.bottom - place.top;
  const colours = manifest.colours[scale.colours];
  const slices = Math.min(64, Math.round(tall));
  for (let i = 0; i < slices; i += 1) {
    pen.fillStyle = colours[Math.round(((i + 0.5) / slices) * (colours.length - 1))];
    pen.fillRect(x, place.top + tall * (1 - (i + 1) / slices), 8, tall / slices + 0.5);
  }
  pen.fillStyle = theme.quiet;
  pen.font = `10px ${theme.font}`;
  pen.textAlign = "left";
  for (const tick of scale.ticks) pen.fillText(tickWords(tick), x + 11, place.bottom - tall * shareOf(scale, tick) + 4);
}

const tickWords = (tick) => (tick && Math.abs(tick) < 0.001 ? tick.toExponential().replace("-", "−") : number(tick));

// The whole map in small, with the window that is shown; in the corner below the bar.
function minimap(pen, place, [layers, heads], theme) {
  const [w, h] = [34, 22];
  const [x, y] = [place.right + 8, place.bottom + 4];
  const { view } = place;
  pen.strokeStyle = theme.quiet;
  pen.lineWidth = 1;
  pen.strokeRect(x, y, w, h);
  pen.fillStyle = theme.mark;
  pen.fillRect(x + (w * view.h0) / heads, y + h * (1 - view.l1 / layers), Math.max(2, (w * (view.h1 - view.h0)) / heads), Math.max(2, (h * (view.l1 - view.l0)) / layers));
}

// Frames over the map: the chosen head, the locked one, the set, and the head under the pointer. No cell is drawn again.
export function drawFrames(pen, place, theme, { head, locked, heads, hover, brush }) {
  const frame = (cell, colour, width, dash = []) => {
    if (!cell || !place.shows(cell)) return;
    const [x, y] = place.corner(cell);
    pen.setLineDash([]);
    pen.strokeStyle = theme.back;
    pen.lineWidth = width + 2.5;
    pen.strokeRect(x - 0.5, y - 0.5, place.w, place.h);
    pen.setLineDash(dash);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.strokeRect(x - 0.5, y - 0.5, place.w, place.h);
    pen.setLineDash([]);
  };
  for (const one of heads) frame(one, theme.set, 2);
  frame(locked, theme.lock, 2.5, [4, 2]);
  frame(hover, theme.quiet, 1.5);
  frame(head, theme.mark, 2.5);
  if (brush) {
    pen.fillStyle = theme.mark;
    pen.globalAlpha = 0.25;
    pen.fillRect(...brush);
    pen.globalAlpha = 1;
  }
}
