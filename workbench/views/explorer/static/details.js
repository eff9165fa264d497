// One head, close up: its numbers under every criterion, and its values on the prompts.
import { createDistribution, pointsOf } from "./distribution.js";
import { button, choice, fill, headName, labelled, make, number } from "./dom.js";

const COLUMNS = [["unsafe", "unsafe"], ["safe", "safe"], ["difference", "unsafe − safe"], ["auroc", "AUROC"]];

// `of` names the head, `sideOf` the run and projection that it is shown for.
export function createHeadCard({ store, data, ask, counts, ground, of, sideOf }) {
  const { state } = store;
  const title = make("h2", {});
  const table = make("table", { className: "wbx-scores" });
  const by = choice([["label", "class"], ["family", "family"], ["source", "source"]], "label", (value) => store.set({ by: value }));
  const criterion = make("span", {});
  const chart = createDistribution({
    ground,
    onPrompt: (i) => store.set({ prompt: data.run(side().run).prompts.id[i] }),
    onThreshold: (bound) => store.set({ threshold: { of: thresholdKey(), bound } }),
    onKeep: ask.live && ((bound) => ask("keep", { run: side().run, criterion: state.criterion, projection: side().projection, head: head(), bound })),
  });
  const root = make("section", { className: "wbx-card" }, title, make("div", { className: "wbx-scroll", tabIndex: 0, role: "region", "aria-label": `scores of the ${of === "locked" ? "locked" : "chosen"} head` }, table), make("div", { className: "wbx-row" }, criterion, labelled("by", by)), chart.root);

  const head = () => state[of];
  const side = () => ({ criterion: state.criterion, ...sideOf() });
  const thresholdKey = () => `${side().run}/${state.criterion}/${side().projection}/${head()}`;

  function row(record) {
    const one = { ...side(), criterion: record.name };
    const rank = data.rankWords(one, state.rule, state.k, head());
    const cells = COLUMNS.map(([column]) => {
      const [kind, why] = data.status(one, column, head());
      const interval = column === "difference" && kind === "known" ? intervalOf(one) : "";
      return make("td", { title: why || null }, kind === "known" ? number(data.value(one, column, head())) : make("i", {}, kind === "undefined" ? "undefined" : "not computed"), interval && make("small", {}, interval));
    });
    const sure = rank.rank && !Number.isNaN(rank.share) ? `first ${state.k}: ${Math.round(100 * rank.share)} %` : "";
    return make("tr", { className: record.name === state.criterion ? "wbx-on" : "" },
      make("th", { scope: "row" }, button(record.title, () => store.set({ criterion: record.name }), { className: "wbx-link", title: record.direction }), make("small", {}, record.unit)),
      make("td", { title: rank.why }, rank.short, sure && make("small", { className: "wbx-whole" }, sure)), cells);
  }

  function intervalOf(one) {
    const [low, high] = ["ci_low", "ci_high"].map((column) => data.value(one, column, head()));
    return Number.isFinite(low) ? `${number(low)} to ${number(high)}` : "";
  }

  function show() {
    if (!head()) return;
    counts.cards += 1;
    const { run: at, projection, label } = side();
    const run = data.run(at);
    fill(title, make("span", { className: `wbx-name wbx-name-${of}` }, headName(head())), make("span", { className: "wbx-quiet" }, [of === "locked" ? "locked" : "", label ?? `${projection} masked`].filter(Boolean).join(", ")));
    const scored = run.criteria.filter((one) => one.scored);
    fill(table, make("thead", {}, make("tr", {}, make("td", {}), make("th", { scope: "col" }, `by ${state.rule}`), COLUMNS.map(([, words]) => make("th", { scope: "col" }, words)))), make("tbody", {}, scored.map(row)));
    showChart();
  }

  function showChart() {
    if (!head()) return;
    const run = data.run(side().run);
    const record = data.criterion(side().run, state.criterion);
    criterion.textContent = `${record?.title ?? state.criterion} on every prompt`;
    const values = data.values(side(), head());
    const which = state.locked && of === "locked" ? null : state.threshold;
    const { points, families } = values ? pointsOf(values, run.prompts, state.by) : { points: [], families: [] };
    chart.show({
      values, points, families, by: state.by, prompts: run.prompts, larger: record?.larger, why: whyNot(record),
      axis: `${record?.title} (${record?.unit})`, prompt: run.prompts.id.indexOf(state.prompt),
      bound: which?.of === thresholdKey() ? which.bound : null,
    });
  }

  function whyNot(record) {
    if (record?.kind !== "per prompt") return `${record?.title} is ${record?.kind}: it has no value for a single prompt.`;
    if (data.status(side(), "unsafe", head())[0] === "not computed") return "This run did not mask or score the head.";
    return ask.live ? "The values are on their way …" : "The values of single prompts are not in this file.";
  }

  return { root, show, showChart };
}
