// The arrays and words that came with the page or from Python, by name; what a cell is, and why it may have no value.
import { headName, number } from "./dom.js";

const TYPES = { f4: [Float32Array, 4], u2: [Uint16Array, 2], u1: [Uint8Array, 1] };
const NOWHERE = 65535;

export function createData(manifest, bytes) {
  const arrays = new Map();
  const scales = new Map();
  let version = 0;

  function take(record, buffer) {
    for (const [name, { at, shape, kind }] of Object.entries(record.arrays)) {
      const [Type, width] = TYPES[kind];
      const count = shape.reduce((a, b) => a * b, 1);
      // A copy where the bytes do not begin on a boundary that the type can read.
      const start = buffer.byteOffset + at;
      const array = start % width
        ? new Type(buffer.buffer.slice(start, start + count * width))
        : new Type(buffer.buffer, start, count);
      arrays.set(name, { array, shape });
    }
    for (const [name, scale] of Object.entries(record.scales)) scales.set(name, scale);
    version += 1;
  }
  take(manifest.packed, bytes);

  const run = (place) => manifest.runs[place];
  const criterion = (place, name) => run(place)?.criteria.find((one) => one.name === name);

  // The projection that a criterion has for the one asked: "none" for criteria that mask no head.
  function projectionOf(place, name, asked) {
    const have = criterion(place, name)?.projections ?? [];
    return have.includes(asked) ? asked : have.includes("none") ? "none" : undefined;
  }

  const key = (side, column) => `${side.run}/${side.criterion}/${projectionOf(side.run, side.criterion, side.projection)}/${column}`;
  const array = (side, column) => arrays.get(key(side, column))?.array;
  const shape = (place) => [run(place).layers, run(place).heads];
  const cell = (place, head) => head[0] * run(place).heads + head[1];

  const data = {
    manifest, arrays, scales, run, criterion, projectionOf, array, shape, cell,
    get version() { return version; },
    merge(reply, buffer) {
      take(reply.packed, buffer);
      if (reply.run !== undefined) manifest.runs[reply.run].criteria = reply.criteria;
    },
    scale: (side, column) => scales.get(key(side, column)),
    ranks: (side, rule) => array(side, `rank/${rule}`),
    stable: (side, rule, k) => array(side, `stable/${rule}/${k}`),
    value(side, column, head) {
      const found = array(side, column);
      return found && inside(side.run, head) ? found[cell(side.run, head)] : NaN;
    },
    rank(side, rule, head) {
      const found = data.ranks(side, rule);
      return found && inside(side.run, head) ? found[cell(side.run, head)] : 0;
    },
    kept: (side, rule) => (data.ranks(side, rule) ?? []).reduce((n, rank) => n + (rank > 0), 0),
    stability(side, rule, k, head) {
      const found = data.stable(side, rule, k);
      const share = found && inside(side.run, head) ? found[cell(side.run, head)] : 255;
      return share === 255 ? NaN : share / 100;
    },
    // The first k heads of a rule, best first.
    first(side, rule, k) {
      const ranks = data.ranks(side, rule);
      if (!ranks) return [];
      const wide = run(side.run).heads;
      const found = [];
      ranks.forEach((rank, i) => {
        if (rank > 0 && rank <= k) found[rank - 1] = [Math.floor(i / wide), i % wide];
      });
      return found.filter(Boolean);
    },
    // One head on every prompt: a Float32Array, or null where it is not here.
    values(side, head) {
      const base = key(side, "values");
      const alone = arrays.get(`${base}/${head[0]}/${head[1]}`);
      if (alone) return alone.array;
      const whole = arrays.get(base);
      if (!whole || !inside(side.run, head)) return null;
      const n = whole.shape[2];
      const at = cell(side.run, head);
      const low = arrays.get(`${base}/low`).array[at];
      const high = arrays.get(`${base}/high`).array[at];
      const out = new Float32Array(n);
      for (let i = 0; i < n; i += 1) {
        const step = whole.array[at * n + i];
        out[i] = step === NOWHERE ? NaN : low + ((high - low) * step) / 65534;
      }
      return out;
    },
    status, rankWords, valueWords, hasValues: (side) => arrays.has(key(side, "values")),
  };

  function inside(place, head) {
    const [layers, heads] = shape(place);
    return head && head[0] < layers && head[1] < heads;
  }

  // "known", "undefined", "not computed" or "outside", and why.
  function status(side, column, head) {
    if (!inside(side.run, head)) return ["outside", "This run has no such head."];
    const record = criterion(side.run, side.criterion);
    if (!record?.scored) return ["not computed", `${record?.title ?? side.criterion} was not scored.`];
    if (Number.isFinite(data.value(side, column, head))) return ["known", ""];
    if (Number.isFinite(data.value(side, "unsafe", head))) {
      const word = manifest.columns.find(([name]) => name === column)?.[1] ?? column;
      const constant = record.kind === "per prompt" ? " where a class is constant" : "";
      return ["undefined", `${word} has no meaning for ${record.title}, which is ${record.kind}${constant}.`];
    }
    return ["not computed", "This run did not mask or score the head."];
  }

  // Whether and where a rule puts a head, and how sure that is.
  function rankWords(side, rule, k, head) {
    const record = criterion(side.run, side.criterion);
    if (!record?.rules.includes(rule)) return { rank: 0, short: "no rank", why: `${rule} has no meaning for ${record?.title ?? side.criterion}.` };
    const [kind, why] = status(side, "unsafe", head);
    if (kind !== "known") return { rank: 0, short: kind, why };
    const rank = data.rank(side, rule, head);
    const says = manifest.rules.find((one) => one.name === rule)?.says ?? "";
    if (!rank) return { rank, short: "excluded", why: `${rule} leaves it out: it ranks ${says}.` };
    const share = data.stability(side, rule, k, head);
    const sure = Number.isNaN(share) ? "" : `, in the first ${k} in ${Math.round(100 * share)} % of redraws of the prompts`;
    return { rank, share, short: `rank ${rank} of ${data.kept(side, rule)}`, why: `rank ${rank} of ${data.kept(side, rule)} by ${rule}${sure}` };
  }

  function valueWords(side, column, head) {
    const [kind, why] = status(side, column, head);
    if (kind !== "known") return { short: kind, why };
    const scale = data.scale(side, column);
    const words = `${number(data.value(side, column, head))} ${scale?.unit === "no unit" ? "" : scale?.unit ?? ""}`.trim();
    return { short: words, why: `${headName(head)}: ${words}` };
  }
  return data;
}

// Whether a head's interval of the difference holds zero: then its sign is not known.
export function uncertain(data, side, head) {
  const low = data.value(side, "ci_low", head);
  const high = data.value(side, "ci_high", head);
  const record = data.criterion(side.run, side.criterion);
  return record?.kind === "per prompt" && Number.isFinite(low) && low <= 0 && high >= 0;
}
