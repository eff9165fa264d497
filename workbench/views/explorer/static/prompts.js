// The prompts of the run: filtered by what is known of them and by their text, one of them chosen.
import { choice, fill, labelled, make, offer } from "./dom.js";

const TAGS = ["label", "source", "family", "category", "split", "variant"];
const SHOWN = 200;

export function createPrompts({ store, data, answers }) {
  const { state } = store;
  const filters = make("div", { className: "wbx-row" });
  const count = make("span", { className: "wbx-quiet", role: "status" });
  const list = make("div", { className: "wbx-list", role: "listbox", "aria-label": "prompts", tabIndex: 0 });
  const shown = make("div", {});
  const search = make("input", { type: "search", placeholder: "words of the prompt, or its id", "aria-label": "search prompts", oninput: () => store.set({ filters: { ...state.filters, text: search.value } }) });
  const root = make("section", { className: "wbx-block" }, make("h3", {}, "Prompt"), shown, make("details", {}, make("summary", {}, "Choose another ", count), filters, list));
  let boxes = {};
  let builtFor = -1;

  function build() {
    builtFor = state.run;
    const { prompts } = data.run(state.run);
    boxes = {};
    for (const tag of TAGS) {
      const values = [...new Set(prompts[tag])].sort();
      if (values.length < 2) continue;
      boxes[tag] = choice([], "", (value) => store.set({ filters: { ...state.filters, [tag]: value } }));
      offer(boxes[tag], [["", "all"], ...values.map((value) => [value, value || "(none)"])], state.filters[tag] ?? "");
    }
    fill(filters, Object.entries(boxes).map(([tag, box]) => labelled(tag === "label" ? "class" : tag, box)), search);
  }

  function kept() {
    const { prompts, texts } = data.run(state.run);
    const words = (state.filters.text ?? "").toLowerCase();
    return prompts.id.map((_, i) => i).filter((i) =>
      Object.keys(boxes).every((tag) => !state.filters[tag] || prompts[tag][i] === state.filters[tag])
      && (!words || prompts.id[i].toLowerCase().includes(words) || texts?.[i].toLowerCase().includes(words)));
  }

  function show() {
    const run = data.run(state.run);
    if (builtFor !== state.run) build();
    const { prompts, texts } = run;
    const at = prompts.id.indexOf(state.prompt);
    const tags = at < 0 ? [] : TAGS.map((tag) => prompts[tag][at]).filter(Boolean);
    const full = answers.prompts.get(state.prompt)?.text ?? texts?.[at];
    fill(shown,
      make("div", { className: "wbx-row" }, make("code", {}, state.prompt ?? "no prompt"), tags.map((tag) => make("span", { className: `wbx-chip${["safe", "unsafe"].includes(tag) ? ` wbx-${tag}` : ""}` }, tag))),
      make("div", { className: "wbx-text" }, at < 0 ? "This run does not have the prompt." : full ?? make("i", {}, "Texts are not in this view: it shows ids only.")),
      picture());
    const found = kept();
    count.textContent = `(${found.length} of ${prompts.id.length}${run.split && run.split !== "all" ? `; heads are scored on the split ${run.split}` : ""})`;
    fill(list, found.slice(0, SHOWN).map((i) => option(prompts, texts, i)), found.length > SHOWN ? make("div", { className: "wbx-quiet" }, `… and ${found.length - SHOWN} more: filter further.`) : null);
  }

  // A report may carry small pictures of some prompts.
  function picture() {
    const source = data.manifest.pictures?.[state.prompt];
    return source ? make("img", { src: source, alt: "the picture of the prompt", className: "wbx-thumb" }) : null;
  }

  function option(prompts, texts, i) {
    return make("div", {
      role: "option", "aria-selected": String(prompts.id[i] === state.prompt), className: `wbx-option wbx-is-${prompts.label[i]}`,
      onclick: () => store.set({ prompt: prompts.id[i] }),
    }, make("code", {}, prompts.id[i]), " ", texts?.[i].slice(0, 90) ?? "");
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const found = kept();
    const { prompts } = data.run(state.run);
    const next = found[Math.max(0, Math.min(found.length - 1, found.findIndex((i) => prompts.id[i] === state.prompt) + step))];
    if (next !== undefined) store.set({ prompt: prompts.id[next] });
    list.querySelector("[aria-selected='true']")?.scrollIntoView({ block: "nearest" });
  });
  return { root, show };
}
