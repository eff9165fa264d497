// A reply step by step: which token was chosen where, what the mask changes there, and, above, where heads look then.
import { button, choice, clamp, fill, make, number } from "./dom.js";
import { penOf, themeOf } from "./pen.js";
import { ticks } from "./statistics.js";

const SIDES = { base: "the reply as it is", masked: "the masked reply" };

export function createSteps({ store, data, answers, ground, nextTable }) {
  const { state } = store;
  const which = choice([], "", (name) => go(name, 0), { "aria-label": "reply to step through" });
  const slider = make("input", { type: "range", min: 0, value: 0, "aria-label": "step of the reply", oninput: () => go(state.reply ?? which.value, Number(slider.value)) });
  const tokens = make("div", { className: "wbx-strip-inner", role: "group", "aria-label": "tokens of the reply" });
  const chart = make("canvas", { role: "img" });
  const now = make("div", {});
  const root = make("section", { hidden: true }, make("h3", {}, "Step through the reply"),
    make("div", { className: "wbx-row" }, which, button("‹", () => move(-1), { "aria-label": "step back" }), slider, button("›", () => move(1), { "aria-label": "step on" })),
    tokens, chart, now);
  let mine = [];

  function reset() {
    mine = [];
    root.hidden = true;
    if (state.reply) store.set({ reply: null, position: null });
  }

  function add(side, steps) {
    answers.replies.set(steps.reply, { side, ...steps });
    mine.push(steps.reply);
    root.hidden = false;
    fill(which, mine.map((name) => make("option", { value: name }, SIDES[answers.replies.get(name).side])));
    show();
  }

  function go(name, step) {
    const reply = answers.replies.get(name);
    if (reply) store.set({ reply: name, position: reply.first + clamp(step, 0, reply.tokens.length - 1) });
  }

  const stepOf = (reply) => (state.reply === reply.reply && state.position !== null ? clamp(state.position - reply.first, 0, reply.tokens.length - 1) : -1);

  function move(by) {
    const reply = answers.replies.get(state.reply ?? which.value);
    if (reply) go(reply.reply, stepOf(reply) + by);
  }

  function show() {
    const reply = answers.replies.get(mine.includes(state.reply) ? state.reply : which.value || mine[0]);
    if (root.hidden || !reply) return;
    which.value = reply.reply;
    const at = stepOf(reply);
    Object.assign(slider, { max: reply.tokens.length - 1, value: Math.max(0, at) });
    fill(tokens, reply.tokens.map((token, i) => button(token, () => go(reply.reply, i), { className: `wbx-word${i === at ? " wbx-from" : ""}`, "aria-pressed": String(i === at) })));
    chart.hidden = !reply.measures;
    if (reply.measures) draw(reply, at);
    fill(now, at < 0 ? make("p", { className: "wbx-quiet" }, "Choose a step: the block “Where it looks” then shows the heads there.")
      : [make("p", {}, `Step ${at + 1} of ${reply.tokens.length}: “${reply.tokens[at]}”`, reply.measures && `. What the mask changes here: ${said(reply.measures[at])}.`), nextTable(reply.next[at])]);
  }

  const titleOf = (name) => data.criterion(state.run, name)?.title ?? name;
  const said = (measures) => Object.entries(measures).map(([name, value]) => `${titleOf(name)} ${number(value)} ${data.criterion(state.run, name)?.unit ?? ""}`).join(", ");

  // How far the mask turns the final state at each step, given the reply so far.
  function draw(reply, at) {
    const theme = themeOf(ground());
    const values = reply.measures.map((one) => one.deflection);
    const [width, height, left] = [Math.max(220, Math.min(520, 46 + 14 * values.length)), 86, 34];
    const pen = penOf(chart, width, height);
    const most = Math.max(...values) || 1;
    const x = (i) => left + (i + 0.5) * ((width - left - 6) / values.length);
    const y = (value) => height - 20 - (value / most) * (height - 32);
    pen.font = `10px ${theme.font}`;
    pen.fillStyle = theme.quiet;
    pen.textAlign = "right";
    for (const tick of ticks(0, most, 3)) pen.fillText(number(tick), left - 5, y(tick) + 3);
    pen.textAlign = "left";
    pen.fillText(`${titleOf("deflection")} by step (degrees)`, left, height - 5);
    values.forEach((value, i) => {
      pen.fillStyle = i === at ? theme.mark : theme.unsafe;
      pen.fillRect(x(i) - Math.min(5, (width - left) / values.length / 2.5), y(value), Math.min(10, (width - left) / values.length / 1.25), height - 20 - y(value));
    });
    chart.setAttribute("aria-label", `${titleOf("deflection")} at each step, ${number(Math.min(...values))} to ${number(most)} degrees`);
    chart.onclick = (event) => go(reply.reply, Math.floor((event.offsetX - left) / ((width - left - 6) / values.length)));
  }

  return { root, add, reset, show };
}
