// The live bench: a prompt of the run, or one that is typed, with heads masked together; the next tokens, then both
// replies as they are decoded. A new question, or Stop, ends the one before.
import { button, choice, fill, headName, labelled, make, number, offer, percent } from "./dom.js";
import { createSteps } from "./steps.js";

export function createBench({ store, data, ask, answers, ground }) {
  const { state } = store;
  const typed = make("textarea", { rows: 2, placeholder: "Type a prompt, or leave this empty to ask the chosen one", "aria-label": "prompt to try" });
  const which = choice([["head", "this head"], ["set", "the set"], ["none", "nothing"]], "head", () => describe());
  const form = choice([["", "as the run did"], ["limit", "limit"], ["scale", "scale"], ["as_published", "as published"], ["interchange", "its twin's output"]], "", () => { factor.disabled = form.value !== "scale"; });
  const factor = make("input", { type: "number", value: "0.5", step: "0.1", disabled: true, "aria-label": "factor" });
  const positions = choice([["all", "all positions"], ["after_image", "after the picture"], ["image", "the picture"], ["last", "the last position"]], "all", () => {});
  const picture = choice([], "keep", () => {});
  const file = make("input", { type: "file", accept: "image/*", "aria-label": "another picture", onchange: () => file.files[0] && take(file.files[0]) });
  const go = button("Ask with and without", () => start(), { className: "wbx-main" });
  const stop = button("Stop", () => ask("stop", {}), { disabled: true });
  const masked = make("span", { className: "wbx-quiet" });
  const tokens = make("div", {});
  const replies = make("div", { className: "wbx-replies" });
  const note = make("div", { className: "wbx-quiet", role: "status" });
  const steps = createSteps({ store, data, answers, ground, nextTable });
  const root = make("section", { className: "wbx-block" }, make("h3", {}, "Ask the model"), typed,
    make("div", { className: "wbx-row" }, labelled("mask", which), labelled("form", form), labelled("factor", factor), labelled("at", positions), labelled("picture", picture), file),
    make("div", { className: "wbx-row" }, go, stop, masked), note, tokens, replies, steps.root);
  let serial = 0;
  let parts = {};
  let own = null; // bytes of a picture that was dropped

  // A picture can be dropped anywhere on the bench.
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    const dropped = [...event.dataTransfer.files].find((one) => one.type.startsWith("image/"));
    if (dropped) take(dropped);
  });

  async function take(one) {
    own = await one.arrayBuffer();
    offerPictures("own");
    note.textContent = `${one.name} is the picture now.`;
  }

  function offerPictures(value) {
    const options = [["keep", "with its picture"], ["blank", "picture blanked"], ["none", "without it"]];
    if (state.box) options.push(["box", "the box blanked"]);
    if (own) options.push(["own", "the picture given"]);
    offer(picture, options, options.some(([key]) => key === value) ? value : "keep");
  }

  const heads = () => (which.value === "none" ? [] : which.value === "set" ? state.heads : [state.head]);

  function describe() {
    const chosen = heads();
    masked.textContent = chosen.length ? `${chosen.map(headName).join(" ")} masked${chosen.length > 1 ? " together" : ""}, ${state.projection}` : which.value === "set" ? "the set is empty: shift-click heads" : "";
    go.disabled = which.value === "set" && !chosen.length;
  }

  function start() {
    serial += 1;
    parts = {};
    fill(tokens);
    fill(replies);
    steps.reset();
    note.textContent = "Asking …";
    stop.disabled = false;
    ask("try", {
      serial, prompt: state.prompt, text: typed.value.trim(), heads: heads(), projection: state.projection,
      form: form.value, factor: Number(factor.value), positions: positions.value, picture: picture.value,
      box: picture.value === "box" ? state.box : null,
    }, picture.value === "own" ? [own] : []);
  }

  function heard(reply) {
    if (reply.serial !== serial) return; // an answer to a question that is no longer asked
    if (reply.note !== undefined) {
      note.textContent = reply.note;
      stop.disabled = reply.done === true;
    }
    if (reply.restart) {
      parts = {};
      fill(replies);
      steps.reset();
    }
    if (reply.steps) steps.add(reply.side, reply.steps);
    if (reply.next) showNext(reply);
    if (reply.piece !== undefined) {
      if (!parts[reply.side]) {
        parts[reply.side] = make("div", { className: `wbx-reply wbx-reply-${reply.side}` });
        replies.append(make("figure", {}, make("figcaption", {}, reply.side === "base" ? "as it is" : `${heads().map(headName).join(" ")} masked`), parts[reply.side]));
      }
      parts[reply.side].append(reply.piece);
    }
  }

  function showNext({ next, measures }) {
    fill(tokens, nextTable(next), measures && make("p", {}, Object.entries(measures).map(([name, value]) => `${data.criterion(state.run, name)?.title ?? name} ${number(value)} ${data.criterion(state.run, name)?.unit ?? ""}`).join(" · ")));
  }

  function show() {
    root.hidden = !data.manifest.asks;
    offerPictures(picture.value);
    describe();
  }
  return { root, show, heard, showStep: steps.show };
}

// A row a token: its probability as it is and under the mask.
export function nextTable(rows) {
  const bar = (p, kind) => make("td", {}, make("span", { className: `wbx-bar wbx-bar-${kind}`, style: { width: `${Math.round(60 * p)}px` } }), percent(p));
  return make("table", { className: "wbx-next" }, make("thead", {}, make("tr", {}, ["next token", "as it is", "masked"].map((words) => make("th", { scope: "col" }, words)))),
    make("tbody", {}, rows.map(([token, base, masked]) => make("tr", {}, make("th", { scope: "row" }, make("code", {}, token)), bar(base, "base"), bar(masked, "masked")))));
}
