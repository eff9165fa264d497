// What is chosen now, who wants to know, and the way back. `choice` is what a person would undo or send to others;
// `view` is how it is looked at.

export const CHOSEN = ["head", "locked", "heads", "prompt", "criterion", "rule", "projection", "column", "run"];

// What is looked at: the chosen prompt, or a reply to it that is stepped through.
export const subjectOf = (state) => state.reply ?? state.prompt;

export function createStore(initial) {
  const state = { ...initial };
  const listeners = [];
  let past = [];
  let future = [];

  const chosen = () => Object.fromEntries(CHOSEN.map((name) => [name, state[name]]));
  const differs = (patch) => Object.keys(patch).filter((name) => JSON.stringify(patch[name]) !== JSON.stringify(state[name]));

  function apply(patch, origin) {
    const changed = differs(patch);
    if (!changed.length) return;
    Object.assign(state, patch);
    for (const listener of [...listeners]) {
      if (!listener.names || listener.names.some((name) => changed.includes(name))) listener.act(changed, origin);
    }
  }

  return {
    state,
    // Held keys are one step: what follows within `merge` of the last change takes its place.
    set(patch, { origin = "here", step = true } = {}) {
      const changed = differs(patch).filter((name) => CHOSEN.includes(name));
      if (step && changed.length) {
        const last = past.at(-1);
        const only = changed.join();
        if (!(last && only === "head" && last.only === "head" && performance.now() - last.at < 700)) {
          past.push({ before: chosen(), only, at: performance.now() });
          past = past.slice(-200);
        } else last.at = performance.now();
        future = [];
      }
      apply(patch, origin);
    },
    on(names, act) {
      listeners.push({ names, act });
    },
    undo() {
      const last = past.pop();
      if (!last) return false;
      future.push(chosen());
      apply(last.before, "undo");
      return true;
    },
    redo() {
      const next = future.pop();
      if (!next) return false;
      past.push({ before: chosen(), only: "redo", at: 0 });
      apply(next, "undo");
      return true;
    },
    can: () => ({ undo: past.length > 0, redo: future.length > 0 }),
  };
}

// Runs `act` once the calls have been quiet for a while; `now` runs what waits at once.
export function settled(act, ms) {
  let timer = null;
  const run = () => {
    timer = null;
    act();
  };
  const ask = () => {
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
  ask.now = () => {
    if (timer === null) return;
    clearTimeout(timer);
    run();
  };
  return ask;
}

// At most one call a frame, for drawing.
export function nextFrame(act) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      act();
    });
  };
}
