// The prompt's words in a line, with arcs from the position that looks to those it looks at. The picture's tokens are one
// word there: an overlay shows them.
import { fill, make, percent } from "./dom.js";
import { ABSOLUTE, lightOf } from "./overlay.js";

const TALL = 56; // pixels above the words, for arcs
const SVG = "http://www.w3.org/2000/svg";

export function createStrip({ onToken, onHover }) {
  const arcs = document.createElementNS(SVG, "svg");
  arcs.setAttribute("class", "wbx-arcs");
  arcs.setAttribute("aria-hidden", "true");
  const words = make("div", { className: "wbx-words", role: "group", "aria-label": "tokens of the prompt; choose one to look from there" });
  const inner = make("div", { className: "wbx-strip-inner" }, arcs, words);
  const root = make("div", { className: "wbx-strip", tabIndex: 0, role: "region", "aria-label": "words of the prompt and what is looked at" }, inner);
  let shown = "";
  let from = -1;

  // `weights` on every position; `looks` is the position that looks, or null where the weights are what positions give.
  function show({ id, tokens, image, weights, looks, sinks, first }) {
    const seen = new Set(image);
    const sum = image.reduce((total, i) => total + weights[i], 0);
    const places = [];
    const children = tokens.map((token, i) => {
      const picture = seen.has(i);
      if (picture && places.some((place) => place.picture)) return null;
      const weight = picture ? sum : weights[i];
      const said = `${picture ? "picture: " : ""}${percent(weight)} of the attention${sinks.has(i) ? "; an attention sink" : ""}`;
      const look = `wbx-word${i === looks ? " wbx-from" : ""}${sinks.has(i) ? " wbx-sink" : ""}${picture ? " wbx-chip" : ""}${i > first ? " wbx-said" : ""}`;
      const element = picture
        ? make("span", { className: look, style: { "--light": lightOf(ABSOLUTE, weight).toFixed(3) }, title: said }, `picture, ${image.length} tokens`)
        : make("button", { type: "button", className: look, style: { "--light": lightOf(ABSOLUTE, weight).toFixed(3) }, title: said, onclick: () => onToken(i), onpointerenter: () => onHover(i), onpointerleave: () => onHover(null) }, token);
      places.push({ i, element, weight, picture });
      return element;
    });
    const focused = words.contains(document.activeElement) ? [...words.children].indexOf(document.activeElement) : -1;
    fill(words, children);
    words.children[focused]?.focus({ preventScroll: true });
    draw(places, places.find((place) => place.i === looks) ?? (seen.has(looks) ? places.find((place) => place.picture) : null));
    if (looks !== null && (shown !== id || from !== looks)) {
      const at = places.find((place) => place.i === looks)?.element;
      if (at) root.scrollLeft = at.offsetLeft + at.offsetWidth - root.clientWidth + 40;
      [shown, from] = [id, looks];
    }
  }

  // One arc a word that gets at least the least of the scale, as thick and as dark as its share.
  function draw(places, source) {
    const middle = ({ element }) => element.offsetLeft + element.offsetWidth / 2;
    arcs.setAttribute("width", words.scrollWidth);
    arcs.setAttribute("height", TALL);
    arcs.replaceChildren(...(source ? places : []).filter((place) => place !== source && place.weight > ABSOLUTE.low).map((place) => {
      const [a, b] = [middle(source), middle(place)];
      const rise = Math.min(TALL - 5, 10 + Math.abs(a - b) * 0.22);
      const light = lightOf(ABSOLUTE, place.weight);
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M${a} ${TALL}C${a} ${TALL - rise * 1.3} ${b} ${TALL - rise * 1.3} ${b} ${TALL}`);
      path.setAttribute("stroke-width", (0.8 + 3.2 * light).toFixed(2));
      path.setAttribute("stroke-opacity", (0.2 + 0.8 * light).toFixed(2));
      path.dataset.to = place.i;
      return path;
    }));
  }
  return { root, show };
}
