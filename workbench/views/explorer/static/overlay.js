// Attention laid over a picture: each image token over the place that the model family says it stands for.
import { penOf } from "./pen.js";
import { clamp } from "./dom.js";

// One scale for every head, so that a head that looks 2 % at the picture does not shine like one at 79 %.
export const ABSOLUTE = { low: 0.001, high: 0.5, log: true };

export function lightOf(scale, weight) {
  if (!(weight > scale.low)) return 0;
  return clamp(Math.log(weight / scale.low) / Math.log(scale.high / scale.low), 0, 1);
}

// Places between all edges of the boxes, and what the tokens over each of them get together. Tiles and the whole
// picture as one more tile overlap, and then add up. Separators have no box.
export function rasterOf(weights, boxes) {
  const edges = (i, j) => {
    const all = boxes.flatMap((box) => (box ? [box[i], box[j]] : [])).map((v) => Math.round(clamp(v, 0, 1) * 1e5) / 1e5);
    return [...new Set(all)].sort((a, b) => a - b);
  };
  const [xs, ys] = [edges(0, 2), edges(1, 3)];
  const place = (edge, value) => edge.findIndex((one) => Math.abs(one - clamp(value, 0, 1)) < 2e-5);
  const cells = new Float64Array(Math.max(0, xs.length - 1) * Math.max(0, ys.length - 1));
  boxes.forEach((box, token) => {
    if (!box) return;
    const [x0, x1, y0, y1] = [place(xs, box[0]), place(xs, box[2]), place(ys, box[1]), place(ys, box[3])];
    for (let y = y0; y < y1; y += 1) for (let x = x0; x < x1; x += 1) cells[y * (xs.length - 1) + x] += weights[token];
  });
  return { xs, ys, cells };
}

// The picture under a veil that is lifted where the head looks.
export function drawOverlay(canvas, picture, raster, { width, height, veil, scale }) {
  const pen = penOf(canvas, width, height);
  if (picture) {
    pen.imageSmoothingEnabled = width <= picture.naturalWidth * 2;
    pen.drawImage(picture, 0, 0, width, height);
  }
  if (!raster) return;
  pen.fillStyle = "#0b1016";
  const { xs, ys, cells } = raster;
  const shade = (x, y, w, h, light) => {
    pen.globalAlpha = veil * (1 - light);
    pen.fillRect(x, y, w, h);
  };
  for (let j = 0; j < ys.length - 1; j += 1) {
    for (let i = 0; i < xs.length - 1; i += 1) {
      const [x, y] = [Math.round(xs[i] * width), Math.round(ys[j] * height)];
      shade(x, y, Math.round(xs[i + 1] * width) - x, Math.round(ys[j + 1] * height) - y, lightOf(scale, cells[j * (xs.length - 1) + i]));
    }
  }
  // What no token stands for (cropped off by the processor) is not seen at all.
  pen.globalAlpha = veil;
  const [left, right, top, bottom] = [xs[0] * width, xs.at(-1) * width, ys[0] * height, ys.at(-1) * height].map(Math.round);
  for (const box of [[0, 0, left, height], [right, 0, width - right, height], [left, 0, right - left, top], [left, bottom, right - left, height - bottom]]) pen.fillRect(...box);
  pen.globalAlpha = 1;
}

// Image tokens over a point, or inside a box, in shares of the picture; the smallest box first.
export function tokensAt(boxes, x, y) {
  const over = boxes.map((box, i) => [box, i]).filter(([box]) => box && x >= box[0] && x < box[2] && y >= box[1] && y < box[3]);
  const area = ([box]) => (box[2] - box[0]) * (box[3] - box[1]);
  return over.sort((a, b) => area(a) - area(b)).map(([, i]) => i);
}

export function tokensInside(boxes, [left, top, right, bottom]) {
  return boxes.map((box, i) => [box, i]).filter(([box]) => {
    if (!box) return false;
    const [x, y] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    return x >= left && x < right && y >= top && y < bottom;
  }).map(([, i]) => i);
}
