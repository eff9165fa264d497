// The few statistics that are drawn of one head: densities, the published threshold, rates at a threshold. Python has
// the same (workbench.criteria.thresholds); a test holds one against the other.

const GRID = 1000; // points at which the published rule compares the densities

export function linspace(low, high, count) {
  return Float64Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
}

export const extent = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

// Gaussian kernel density with Scott's bandwidth, at some places; null for values without spread.
export function density(values, places) {
  const n = values.length;
  const [low, high] = extent(values);
  if (n < 2 || high <= low) return null;
  const mean = values.reduce((a, b) => a + b, 0) / n;
  const spread = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1));
  const width = spread * n ** -0.2;
  const norm = 1 / (n * width * Math.sqrt(2 * Math.PI));
  return places.map((x) => norm * values.reduce((sum, v) => sum + Math.exp(-0.5 * ((x - v) / width) ** 2), 0));
}

const shareOver = (values, bound, strict) => values.reduce((n, v) => n + (strict ? v > bound : v >= bound), 0) / values.length;

export const balancedAccuracy = (unsafe, safe, bound) => 1 - (1 - shareOver(unsafe, bound, false) + shareOver(safe, bound, false)) / 2;

// Where the densities of the classes cross, the best by balanced accuracy; null where there is none to be set.
export function crossing(unsafe, safe) {
  if (unsafe.length < 3 || safe.length < 3) return null;
  const [low, high] = extent([...unsafe, ...safe]);
  if (high <= low) return null;
  const grid = linspace(low, high, GRID);
  const [a, b] = [density(unsafe, grid), density(safe, grid)];
  const middle = (median(unsafe) + median(safe)) / 2;
  if (!a || !b) return middle;
  let best = null;
  for (let i = 0; i < GRID - 1; i += 1) {
    const [one, next] = [a[i] - b[i], a[i + 1] - b[i + 1]];
    if (Math.sign(one) === Math.sign(next)) continue;
    const at = grid[i] + (one / (one - next)) * (grid[i + 1] - grid[i]);
    const score = balancedAccuracy(unsafe, safe, at);
    if (!best || score > best.score) best = { at, score };
  }
  return best ? best.at : middle;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// Shares of unsafe prompts detected and of safe ones flagged by "unsafe if the value exceeds the bound".
export const ratesAt = (unsafe, safe, bound) => ({ detected: shareOver(unsafe, bound, true), alarms: shareOver(safe, bound, true) });

// Detection where at most a share `fpr` of the safe values is over the threshold.
export function detectedAt(unsafe, safe, fpr) {
  const sorted = [...safe].sort((a, b) => a - b);
  return shareOver(unsafe, sorted[sorted.length - 1 - Math.floor(fpr * sorted.length + 1e-9)], true);
}

// Points (alarms, detected) of the ROC curve from one corner to the other, and the area under it, ties counting half.
export function roc(unsafe, safe) {
  const all = [...unsafe.map((v) => [v, 1]), ...safe.map((v) => [v, 0])].sort((a, b) => b[0] - a[0]);
  const points = [[0, 0]];
  let [alarms, detected, area] = [0, 0, 0];
  for (let i = 0; i < all.length;) {
    const before = [alarms, detected];
    const value = all[i][0];
    for (; i < all.length && all[i][0] === value; i += 1) {
      if (all[i][1]) detected += 1;
      else alarms += 1;
    }
    area += ((alarms - before[0]) * (detected + before[1])) / 2;
    points.push([alarms / safe.length, detected / unsafe.length]);
  }
  return { points, area: area / (unsafe.length * safe.length) };
}

export function ranksOf(values) {
  const order = values.map((v, i) => [v, i]).sort((a, b) => a[0] - b[0]);
  const out = new Array(values.length);
  for (let i = 0; i < order.length;) {
    let j = i;
    while (j < order.length && order[j][0] === order[i][0]) j += 1;
    for (let m = i; m < j; m += 1) out[order[m][1]] = (i + j + 1) / 2;
    i = j;
  }
  return out;
}

export function spearman(x, y) {
  const [a, b] = [ranksOf(x), ranksOf(y)];
  const mean = (a.length + 1) / 2;
  let [top, left, right] = [0, 0, 0];
  for (let i = 0; i < a.length; i += 1) {
    top += (a[i] - mean) * (b[i] - mean);
    left += (a[i] - mean) ** 2;
    right += (b[i] - mean) ** 2;
  }
  return left && right ? top / Math.sqrt(left * right) : NaN;
}

// Multiples of 1, 2, 2.5 or 5 times a power of ten between two ends, about `most` of them.
export function ticks(low, high, most) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * (1 - 1e-9));
  const out = [];
  for (let i = Math.ceil(low / step); i <= Math.floor(high / step); i += 1) out.push(i * step);
  return out;
}
