// A threshold under a distribution: moved live, with its rates in all, by family and by source, and the ROC curve it is
// a point of.
import { button, fill, make, number, percent } from "./dom.js";
import { penOf, themeOf } from "./pen.js";
import { crossing, detectedAt, ratesAt, roc } from "./statistics.js";

const GROUPS = ["family", "source"];
const SIDE = 132;

// Values of unsafe and safe prompts that a threshold is judged on: those of the split `threshold`, where there is one.
export function splitOf(points, prompts) {
  const threshold = prompts.split.some((split) => split === "threshold");
  const used = threshold ? points.filter((p) => prompts.split[p.i] === "threshold") : points;
  const of = (label) => used.filter((p) => p.label === label).map((p) => p.value);
  return { used, unsafe: of("unsafe"), safe: of("safe"), split: threshold ? "threshold" : "" };
}

export const publishedOf = ({ unsafe, safe }) => crossing(unsafe, safe);

// Detected and falsely flagged shares of each value of a tag, over the prompts judged.
export function ratesBy(used, names, bound) {
  const share = (name, label) => {
    const of = used.filter((p) => p.label === label && names[p.i] === name);
    return [of.filter((p) => p.value > bound).length, of.length];
  };
  return [...new Set(used.map((p) => names[p.i]))].sort().map((name) => ({ name, unsafe: share(name, "unsafe"), safe: share(name, "safe") }));
}

export function createThreshold({ ground, onMove, onKeep }) {
  const slider = make("input", { type: "range", min: 0, max: 1000, "aria-label": "threshold" });
  const said = make("div", { className: "wbx-rates" });
  const groups = make("div", { className: "wbx-groups" });
  const curve = make("canvas", { className: "wbx-roc", role: "img" });
  const keep = onKeep && button("Keep as a detector", () => onKeep(now.bound), { className: "wbx-small" });
  const root = make("div", { className: "wbx-threshold" }, make("div", {}, make("div", { className: "wbx-row" }, make("label", {}, "threshold ", slider), keep), said,
    make("details", { ontoggle: () => words() }, make("summary", {}, "by family and by source"), groups)), curve);
  let now = null;

  function show(next) {
    root.hidden = next.bound === null || !next.parts.unsafe.length || !next.parts.safe.length;
    if (root.hidden) return;
    now = { ...next, roc: roc(next.parts.unsafe, next.parts.safe) };
    slider.value = String(Math.round((1000 * (now.bound - now.low)) / (now.high - now.low)));
    words();
  }

  function words() {
    if (!now) return;
    const { unsafe, safe, split, used } = now.parts;
    const at = ratesAt(unsafe, safe, now.bound);
    const few = safe.length < 100 ? ` (with ${safe.length} safe prompts, steps of ${percent(1 / safe.length)})` : "";
    fill(said, make("b", {}, number(now.bound)), now.bound === now.published ? " (as published) " : " ",
      `detects ${percent(at.detected)}, false alarms ${percent(at.alarms)}; AUROC ${number(now.roc.area)}; `,
      `detects ${percent(detectedAt(unsafe, safe, 0.01))} at 1 % and ${percent(detectedAt(unsafe, safe, 0.05))} at 5 % false alarms${few}`,
      split ? `, on the split ${split}.` : ", on all prompts shown.");
    draw(at);
    if (groups.parentElement.open) fill(groups, GROUPS.map((tag) => table(tag, ratesBy(used, now.prompts[tag], now.bound))));
  }

  function table(tag, rows) {
    const cell = ([over, n]) => make("td", {}, n ? `${percent(over / n)} of ${n}` : "–");
    return make("table", {}, make("thead", {}, make("tr", {}, [tag, "detected", "false alarms"].map((w) => make("th", { scope: "col" }, w)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, make("th", { scope: "row" }, row.name || "(none)"), cell(row.unsafe), cell(row.safe)))));
  }

  // The curve, the two rates of false alarms at which it is read, and where the threshold is on it.
  function draw({ alarms, detected }) {
    const theme = themeOf(ground());
    const pen = penOf(curve, SIDE + 38, SIDE + 30);
    const [x, y] = [(share) => 34 + share * (SIDE - 4), (share) => SIDE - share * (SIDE - 4)];
    const line = (points, colour, width, dash = []) => {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.setLineDash(dash);
      pen.beginPath();
      points.forEach(([a, b], i) => pen[i ? "lineTo" : "moveTo"](x(a), y(b)));
      pen.stroke();
      pen.setLineDash([]);
    };
    line([[0, 0], [1, 1]], theme.line, 1);
    for (const rate of [0.01, 0.05]) line([[rate, 0], [rate, 1]], theme.line, 1, [3, 3]);
    line([[0, 1], [0, 0], [1, 0]], theme.quiet, 1);
    line(now.roc.points, theme.unsafe, 2);
    pen.fillStyle = theme.quiet;
    pen.font = `10px ${theme.font}`;
    pen.textAlign = "right";
    for (const share of [0, 0.5, 1]) pen.fillText(String(share), 31, y(share) + (share === 1 ? 9 : share ? 4 : 0));
    pen.textAlign = "center";
    for (const share of [0, 0.5, 1]) pen.fillText(String(share), x(share), SIDE + 12);
    pen.fillText("false alarms", x(0.5), SIDE + 25);
    pen.save();
    pen.translate(8, y(0.5));
    pen.rotate(-Math.PI / 2);
    pen.fillText("detected", 0, 0);
    pen.restore();
    pen.fillStyle = theme.mark;
    pen.beginPath();
    pen.arc(x(alarms), y(detected), 5, 0, 7);
    pen.fill();
    curve.setAttribute("aria-label", `ROC curve, area ${number(now.roc.area)}; the threshold detects ${percent(detected)} at ${percent(alarms)} false alarms`);
  }

  slider.addEventListener("input", () => {
    now.bound = now.low + ((now.high - now.low) * slider.value) / 1000;
    onMove(now.bound);
    words();
  });
  return { root, show, draw: words };
}
