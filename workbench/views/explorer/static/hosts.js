// Where the explorer runs: in a notebook, where Python answers and keeps what is chosen, or as a page of its own, where
// the address does.
import { CHOSEN } from "./state.js";

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export function notebookHost(model) {
  let serial = 0;
  return {
    live: model.get("_live"),
    manifest: structuredClone(model.get("_manifest")),
    bytes: model.get("_data"),
    first: Object.fromEntries(CHOSEN.map((name) => [name, structuredClone(model.get(name))])),
    // What is chosen goes back in one message, and only what changed.
    keep(chosen, counts) {
      let changed = false;
      for (const [name, value] of Object.entries(chosen)) {
        if (same(model.get(name), value)) continue;
        model.set(name, value);
        changed = true;
      }
      if (!changed) return;
      counts.messages += 1;
      counts.bytes += JSON.stringify(chosen).length;
      model.save_changes();
    },
    ask(kind, body, counts, buffers = []) {
      serial += 1;
      const message = { ask: kind, id: serial, ...body };
      counts.messages += 1;
      counts.bytes += JSON.stringify(message).length;
      model.send(message, undefined, buffers);
      return serial;
    },
    listen(onReply, onChoice) {
      model.on("msg:custom", onReply);
      for (const name of CHOSEN) model.on(`change:${name}`, () => onChoice({ [name]: structuredClone(model.get(name)) }));
    },
  };
}

const headOf = (text) => {
  const found = /^L(\d{1,4})H(\d{1,4})$/.exec(text ?? "");
  return found ? [Number(found[1]), Number(found[2])] : null;
};
const nameOf = (head) => (head ? `L${head[0]}H${head[1]}` : "");

// #head=L3H6&prompt=…: a link to what is chosen. What the page does not have is passed over by `mount`.
export function readAddress(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const out = {};
  for (const name of ["criterion", "rule", "projection", "column", "prompt"]) if (given.has(name)) out[name] = given.get(name);
  for (const name of ["head", "locked"]) if (headOf(given.get(name))) out[name] = headOf(given.get(name));
  if (given.has("heads")) out.heads = given.get("heads").split(".").map(headOf).filter(Boolean);
  if (/^\d{1,2}$/.test(given.get("run") ?? "")) out.run = Number(given.get("run"));
  return out;
}

export function writeAddress(chosen) {
  const out = new URLSearchParams();
  for (const name of ["criterion", "rule", "projection", "column", "prompt"]) if (chosen[name]) out.set(name, chosen[name]);
  for (const name of ["head", "locked"]) if (chosen[name]) out.set(name, nameOf(chosen[name]));
  if (chosen.heads?.length) out.set("heads", chosen.heads.map(nameOf).join("."));
  if (chosen.run) out.set("run", chosen.run);
  return `#${out}`;
}

export function pageHost(manifest, bytes) {
  return {
    live: false, manifest, bytes, first: { ...manifest.first, ...readAddress(location.hash) },
    keep: (chosen) => history.replaceState(null, "", writeAddress(chosen)),
    ask: () => null,
    listen(onReply, onChoice) {
      addEventListener("hashchange", () => onChoice(readAddress(location.hash)));
    },
  };
}

export function bytesOf(base64) {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) out[i] = text.charCodeAt(i);
  return new DataView(out.buffer);
}
