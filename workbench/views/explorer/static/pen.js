// Colours of the theme, canvases as sharp as the screen, and a pen that writes SVG by the same strokes.

export function themeOf(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    text: read("--wbx-text"), quiet: read("--wbx-quiet"), line: read("--wbx-line"), field: read("--wbx-field"), back: read("--wbx-back"),
    unsafe: read("--wbx-unsafe"), safe: read("--wbx-safe"), mark: read("--wbx-mark"), lock: read("--wbx-lock"),
    set: read("--wbx-set"), font: style.fontFamily || "sans-serif",
  };
}

// Fits a canvas to a size in CSS pixels and gives its pen, cleared.
export function penOf(canvas, width, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

export function shareOf(scale, value) {
  const [low, high, at] = scale.log ? [Math.log(scale.low), Math.log(scale.high), Math.log(value)] : [scale.low, scale.high, value];
  return Math.min(1, Math.max(0, (at - low) / (high - low)));
}

export function shade(manifest, scale, value) {
  const steps = manifest.colours[scale.colours];
  return steps[Math.round(shareOf(scale, value) * (steps.length - 1))];
}

// White or dark, whichever stands out more: their contrast is equal at a relative luminance of 0.19 (WCAG 2).
export function inkOn(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => (parseInt(hex.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.19 ? "#fff" : "#111";
}

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const at = (value) => Number(value.toFixed(2));

// The strokes that the drawings here use, as a vector file.
export class SvgPen {
  constructor(width, height, back) {
    Object.assign(this, { width, height, parts: [], fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, font: "11px sans-serif", textAlign: "left", globalAlpha: 1, path: [], shift: [], move: [0, 0], turn: 0, dash: [] });
    if (back) {
      this.fillStyle = back;
      this.fillRect(0, 0, width, height);
    }
  }
  save() { this.shift.push([[...this.move], this.turn, this.globalAlpha]); }
  restore() { [this.move, this.turn, this.globalAlpha] = this.shift.pop(); }
  translate(x, y) { this.move = [this.move[0] + x, this.move[1] + y]; }
  rotate(angle) { this.turn += angle; }
  setLineDash(dash) { this.dash = dash; }
  look(fill, stroke) {
    const turn = this.turn ? ` rotate(${at((this.turn * 180) / Math.PI)})` : "";
    const line = stroke ? ` stroke="${escape(this.strokeStyle)}" stroke-width="${this.lineWidth}"${this.dash.length ? ` stroke-dasharray="${this.dash}"` : ""}` : "";
    const moved = this.move[0] || this.move[1] || turn ? ` transform="translate(${at(this.move[0])} ${at(this.move[1])})${turn}"` : "";
    return ` fill="${fill ? escape(this.fillStyle) : "none"}"${line}${this.globalAlpha < 1 ? ` opacity="${at(this.globalAlpha)}"` : ""}${moved}`;
  }
  rect(x, y, w, h, fill, stroke) { this.parts.push(`<rect x="${at(x)}" y="${at(y)}" width="${at(w)}" height="${at(h)}"${this.look(fill, stroke)}/>`); }
  fillRect(x, y, w, h) { this.rect(x, y, w, h, true, false); }
  strokeRect(x, y, w, h) { this.rect(x, y, w, h, false, true); }
  fillText(text, x, y) {
    const anchor = { left: "start", center: "middle", right: "end" }[this.textAlign];
    const [, weight, size] = /^(?:(bold|600) )?([\d.]+)px/.exec(this.font) ?? [];
    this.parts.push(`<text x="${at(x)}" y="${at(y)}" text-anchor="${anchor}" font-family="sans-serif" font-size="${size}"${weight ? ' font-weight="600"' : ""}${this.look(true, false)}>${escape(text)}</text>`);
  }
  strokeText() {}
  beginPath() { this.path = []; }
  moveTo(x, y) { this.path.push(`M${at(x)} ${at(y)}`); }
  lineTo(x, y) { this.path.push(`L${at(x)} ${at(y)}`); }
  closePath() { this.path.push("Z"); }
  arc(x, y, r) { this.path.push(`M${at(x - r)} ${at(y)}a${at(r)} ${at(r)} 0 1 0 ${at(2 * r)} 0a${at(r)} ${at(r)} 0 1 0 ${at(-2 * r)} 0`); }
  stroke() { this.parts.push(`<path d="${this.path.join("")}"${this.look(false, true)}/>`); }
  fill() { this.parts.push(`<path d="${this.path.join("")}"${this.look(true, false)}/>`); }
  text() {
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${at(this.width)}" height="${at(this.height)}" viewBox="0 0 ${at(this.width)} ${at(this.height)}">${this.parts.join("")}</svg>`;
  }
}
