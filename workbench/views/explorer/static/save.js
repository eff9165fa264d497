// What is on the screen as a file or as code: PNG, SVG, CSV, the set of heads, and the Python that shows it again.
import { headName, make, saveFile } from "./dom.js";
import { drawFrames, drawMap, heightFor, placed, wholeWindow } from "./heatmap.js";
import { SvgPen, themeOf } from "./pen.js";

const quote = (text) => JSON.stringify(String(text));
const pythonHead = (head) => (head ? `(${head[0]}, ${head[1]})` : "None");

// All maps that are shown, as one vector drawing.
export function mapsSvg(maps, data, state, element) {
  const theme = themeOf(element);
  const whole = maps[0].source.shape;
  const view = state.view ?? wholeWindow(whole);
  const wide = Math.max(280, 76 + 9 * (view.h1 - view.h0));
  const tall = heightFor(wide, [view.l1 - view.l0, view.h1 - view.h0], 700) + 24;
  const columns = Math.min(3, maps.length);
  const rows = Math.ceil(maps.length / columns);
  const pen = new SvgPen(columns * (wide + 14), rows * tall + 18, theme.back);
  maps.forEach(({ source }, i) => {
    pen.save();
    pen.translate((i % columns) * (wide + 14), Math.floor(i / columns) * tall + 20);
    pen.fillStyle = theme.text;
    pen.font = "bold 12px sans-serif";
    pen.textAlign = "left";
    pen.fillText(`${source.title}${source.note ? `, ${source.note}` : ""}${source.scale ? ` (${source.scale.unit})` : ""}`, 30, -4);
    const place = placed(wide, tall - 24, view);
    drawMap(pen, source, place, theme, { manifest: data.manifest, marks: state.marks, k: state.k, whole });
    drawFrames(pen, place, theme, { ...state, hover: null, brush: null });
    pen.restore();
  });
  const run = data.run(state.run);
  pen.fillStyle = theme.quiet;
  pen.font = "10px sans-serif";
  pen.textAlign = "left";
  pen.fillText(`${run.label}: ${run.about} Numbered: first ${state.k} by ${state.rule}.`, 6, pen.height - 5);
  return pen.text();
}

function saveDrawing(svg, kind) {
  if (kind === "svg") return saveFile("heads.svg", svg, "image/svg+xml");
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => saveFile("heads.png", blob, "image/png"));
  };
  image.src = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
}

// A row a map and head: value, status, rank, stability. Words that a spreadsheet would run get an apostrophe.
export function mapsCsv(maps, state) {
  const cell = (value) => {
    const text = value === null || Number.isNaN(value) ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [["map", "criterion", "projection", "column", "layer", "head", "value", "unit", "status", "rank", "says"]];
  for (const { source } of maps) {
    for (let layer = 0; layer < source.shape[0]; layer += 1) {
      for (let head = 0; head < source.shape[1]; head += 1) {
        const at = [layer, head];
        const [status] = source.status(at);
        const rank = source.side ? source.rank(at) : 0;
        const kind = status !== "known" ? status : source.excluded(at) ? "excluded" : source.uncertain(at) ? "uncertain" : "known";
        lines.push([source.title, source.side?.criterion ?? "", source.side?.projection ?? "", state.column, layer, head, source.value(at), source.scale?.unit ?? "", kind, rank || "", source.readout(at)[1]]);
      }
    }
  }
  return `${lines.map((line) => line.map(cell).join(",")).join("\n")}\n`;
}

export function headsJson(data, state) {
  const run = data.run(state.run);
  const heads = state.heads.length ? state.heads : [state.head];
  const record = { heads: heads.map(headName), grain: run.grain, projection: state.projection, model: run.provenance.model ?? "", weight_hash: run.provenance.weight_hash ?? "" };
  return `${JSON.stringify(record, null, 1)}\n`;
}

export function pythonOf(data, state) {
  const lines = [
    data.manifest.runs.length > 1 ? "board = wb.explore(*runs, model=model)" : "board = wb.explore(run, model=model)",
    `board.criterion, board.projection, board.column, board.rule = ${[state.criterion, state.projection, state.column, state.rule].map(quote).join(", ")}`,
    `board.head, board.locked, board.heads = ${pythonHead(state.head)}, ${pythonHead(state.locked)}, [${state.heads.map(pythonHead).join(", ")}]`,
  ];
  if (state.prompt) lines.push(`board.prompt = ${quote(state.prompt)}`);
  lines.push("board", `# wb.top_heads(scores, criterion=${quote(state.criterion)}, rule=${quote(state.rule)}, projection=${quote(data.projectionOf(state.run, state.criterion, state.projection) ?? state.projection)}, k=${state.k})`);
  return `import workbench as wb\n\n${lines.join("\n")}\n`;
}

// The head and the threshold under its distribution as a detector, which needs no model to be fitted.
export function guardOf(data, state) {
  const { of, bound } = state.threshold ?? {};
  const chosen = of === `${state.run}/${state.criterion}/${state.projection}/${state.head}` ? bound : '"kde"';
  return `from workbench.detectors import OneHeadDetector\n\nguard = OneHeadDetector(head=${pythonHead(state.head)}, criterion=${quote(state.criterion)}, projection=${quote(state.projection)}, threshold=${chosen}).fit_run(run)\nguard.save("guard")\n`;
}

export function saveView(kind, { maps, data, state, element, say }) {
  if (kind === "csv") saveFile("heads.csv", mapsCsv(maps, state), "text/csv");
  else if (kind === "heads") saveFile("heads.json", headsJson(data, state), "application/json");
  else if (kind === "python" || kind === "guard") {
    const text = kind === "python" ? pythonOf(data, state) : guardOf(data, state);
    (navigator.clipboard?.writeText(text) ?? Promise.reject(new Error("no clipboard"))).then(() => say("The Python is in the clipboard."), () => say(text));
  } else if (kind === "link") {
    const address = location.href;
    (navigator.clipboard?.writeText(address) ?? Promise.reject(new Error("no clipboard"))).then(() => say("The link is in the clipboard."), () => say(address));
  } else saveDrawing(mapsSvg(maps, data, state, element), kind);
}
