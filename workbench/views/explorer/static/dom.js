// Elements, numbers and files: text always goes in as text, never as markup.

export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name in element && !["list", "role"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function button(words, act, props = {}) {
  return make("button", { type: "button", onclick: act, ...props }, words);
}

let serial = 0;

// A label and the control it names, side by side.
export function labelled(words, control) {
  control.id ||= `wbx-${Date.now().toString(36)}-${(serial += 1)}`;
  return make("span", { className: "wbx-field" }, make("label", { htmlFor: control.id }, words), control);
}

export function choice(options, value, act, props = {}) {
  const select = make("select", { onchange: () => act(select.value), ...props });
  offer(select, options, value);
  return select;
}

// Options are [value, words, why not]; what has a reason against it is shown and cannot be chosen.
export function offer(select, options, value) {
  fill(select, options.map(([key, words, not]) => make("option", { value: key, disabled: Boolean(not), title: not }, words)));
  select.value = value;
}

// Three significant digits; a dash for what has no value.
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value) >= 1000 ? Math.abs(value).toFixed(0) : value && Math.abs(value) < 1e-4 ? Math.abs(value).toExponential(2).replace("e-", "e−") : String(Number(Math.abs(value).toPrecision(3)));
  return value < 0 ? `−${size}` : size;
}

export function percent(share) {
  if (share === null || Number.isNaN(share)) return "–";
  return share > 0 && share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

export const headName = (head) => (head ? `L${head[0]}H${head[1]}` : "");
export const sameHead = (a, b) => Boolean(a && b && a[0] === b[0] && a[1] === b[1]);
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export function saveFile(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
