// The points in view, the ones within the bounds, and one answer per configuration.

function isBounded() {
  return BOUNDED.some((name) => state[name] !== null);
}

function bounds() {
  return BOUNDED.filter((name) => state[name] !== null).map((name) => {
    const key = `${name}_${state.percentile}`;
    return { key, limit: state[name] * 1000, text: `${name.toUpperCase()} ${state.percentile} ≤ ${number(state[name] * 1000)} ms` };
  });
}

// The least share of a bound that is left at a point: 1 without bounds, -∞ where a latency is unknown.
function tightest(index, limits) {
  let least = { headroom: Infinity, bound: null, surely: true };
  for (const bound of limits) {
    const value = figure(bound.key, index);
    const headroom = value === null ? -Infinity : 1 - value / bound.limit;
    const ends = quantities.get(bound.key) ? [quantities.get(bound.key).high[index]] : [null];
    const surely = least.surely && ends[0] !== null && ends[0] <= bound.limit;
    least = headroom < least.headroom ? { headroom, bound, surely } : { ...least, surely };
  }
  return least;
}

function matchesFilter(index) {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${points.name[index]} ${points.outcomes[index]}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

// The points of the task, of the lines that are switched on, that match the filter.
function pointsInView() {
  const hidden = hiddenLines();
  return everyPoint.filter(
    (index) => points.task[index] === state.task && !hidden.has(points.line[index]) && matchesFilter(index),
  );
}

function isBetter(key, first, second) {
  if (second === null) return first !== null;
  if (first === null) return false;
  return quantities.get(key)?.better === "lower" ? first < second : first > second;
}

// For each line the point at the load at which it does best within the bounds; else the one that is nearest to them.
function configurations(indices) {
  const limits = bounds(), best = new Map();
  for (const index of indices) {
    if (!points.n[index] || figure(state.goal, index) === null) continue;
    const fit = tightest(index, limits);
    const entry = { index, ...fit, meets: fit.headroom >= 0, value: figure(state.goal, index), barred: isBarred(index) };
    const other = best.get(points.line[index]);
    if (!other || isAhead(entry, other)) best.set(points.line[index], entry);
  }
  return [...best.values()].sort((one, other) => (isAhead(one, other) ? -1 : 1));
}

// Whether a severe warning about the goal or a bounded latency keeps a point from being best, as in the answer above.
function isBarred(index) {
  return [state.goal, ...bounds().map((bound) => bound.key)].some((key) => quantities.get(key)?.barred?.includes(index));
}

function isAhead(one, other) {
  if (one.barred !== other.barred) return other.barred;
  if (one.meets !== other.meets) return one.meets;
  return one.meets ? isBetter(state.goal, one.value, other.value) : one.headroom > other.headroom;
}

// The points that no other point equals or betters in both values; by one pass in the order of x.
function paretoFront(indices, x, y) {
  const sign = (key) => (quantities.get(key)?.better === "lower" ? -1 : 1);
  const ordered = indices
    .map((index) => ({ index, x: sign(x) * figure(x, index), y: sign(y) * figure(y, index) }))
    .sort((one, other) => other.x - one.x || other.y - one.y);
  const front = [];
  let highest = -Infinity;
  for (const point of ordered) {
    if (point.y > highest) front.push(point.index);
    highest = Math.max(highest, point.y);
  }
  return front;
}

function hasFront() {
  return Boolean(quantities.get(state.x)?.better && quantities.get(state.y)?.better && state.x !== state.y);
}

// The sentences above the table, when each configuration has one answer.
function verdict(entries) {
  const barred = entries.filter((entry) => entry.barred).map((entry) => points.name[entry.index]);
  const text = bestOf(entries.filter((entry) => !entry.barred));
  return barred.length ? `${text} Not ranked, because of a severe warning: ${barred.join("; ")}.` : text;
}

function bestOf(entries) {
  const goal = labelOf(state.goal, true).toLowerCase().replace("ttft", "TTFT").replace("tpot", "TPOT").replace("gpu", "GPU");
  const within = isBounded() ? ` within ${bounds().map((bound) => bound.text).join(" and ")}` : "";
  const meeting = entries.filter((entry) => entry.meets);
  if (!entries.length) return "No point in view can be ranked by that value.";
  if (!meeting.length) {
    const nearest = entries[0];
    const over = Number.isFinite(nearest.headroom) ? `${nearest.bound.text}: ${percent(-nearest.headroom)} over` : "a latency is unknown";
    const who = entries.length > 1 ? `None of ${entries.length} configurations meets the SLO; the closest is` : "The only configuration does not meet the SLO:";
    return `${who} ${points.name[nearest.index]} (${over}).`;
  }
  const [best, next] = meeting;
  let text = `Best ${goal}${within}: ${points.name[best.index]}, ${shown(state.goal, best.index)} ${unitOf(state.goal)}`;
  if (best.bound) text += `, headroom ${percent(best.headroom)}${best.surely ? "" : " (its interval extends beyond the bound, or is missing)"}`;
  if (!next) return `${text}. No other configuration meets it.`;
  text += `. Next: ${points.name[next.index]}, ${shown(state.goal, next.index)}`;
  return `${text}. ${testText(best.index, next.index)}`;
}

// The tested ratio of two points. With bounds, only for the run's own SLO: other choices among loads are not tested.
function testedPair(first, second) {
  const isPair = (pair) => pair.slice(0, 2).includes(first) && pair.slice(0, 2).includes(second);
  if (isBounded() && BOUNDED.some((name) => state[name] !== (page.slo[name] ?? null))) return undefined;
  if (isBounded() && (state.percentile !== page.percentiles.usual || state.goal !== defaults.goal)) return undefined;
  return (isBounded() ? page.answered : quantities.get(state.goal)?.tested ?? []).find(isPair);
}

function testText(first, second) {
  const pair = testedPair(first, second);
  if (!pair) return "This page does not test whether the two differ; overlap of their intervals is not a test.";
  const [better, , lead, low, high, verdict] = pair;
  const range = `${number(lead)}× (${number(low)} to ${number(high)})`;
  return verdict === "a tie" ? `A tie: ${range}.` : `${points.name[better]} is ${range} ahead.`;
}

function percent(share) {
  return `${Math.round(share * 100)}%`;
}
