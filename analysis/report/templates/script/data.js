// The points of the run, and how their values are read: everything here comes from the page's block of JSON.

const page = JSON.parse(document.getElementById("page-data").textContent);
const points = page.points;
const everyPoint = points.name.map((_, index) => index);
const quantities = new Map(page.quantities.map((quantity) => [quantity.key, quantity]));
const COST = "cost_per_million_tokens";
const PER_GPU = "throughput_per_gpu";
const USER_SPEED = "user_speed";
const SIZE = "size"; // the load's size as an axis
const BOUNDED = ["ttft", "tpot", "e2el"]; // what an SLO can bound, in seconds; labels are in ms
if (quantities.has(PER_GPU) && !quantities.has(COST)) {
  const empty = everyPoint.map(() => null);
  quantities.set(COST, { key: COST, label: "Cost per million output tokens", short: "Cost", unit: "$/M tok",
    better: "lower", lost: {}, value: empty, low: empty, high: empty, newLow: empty, newHigh: empty });
}
const cost = quantities.get(COST);
if (cost) cost.short = "Cost";

function priceFactor(index, prices) {
  const machine = points.machine[index];
  const price = prices[machine], original = page.prices[machine];
  if (price === null || price === undefined) return null;
  return original && cost.value[index] !== null ? { measured: price / original } : { hour: price };
}

// A value of a point in the unit of its label; null if the point lacks it. A cost follows the price that is set.
function figure(key, index, part = "value") {
  if (key === SIZE) return points.size[index];
  const quantity = quantities.get(key);
  if (!quantity || !quantity[part]) return null;
  if (key !== COST) return quantity[part][index];
  const factor = priceFactor(index, state.prices);
  if (factor === null) return null;
  if (factor.measured !== undefined) {
    const own = quantity[part][index];
    return own === null ? null : own * factor.measured;
  }
  const opposite = { value: "value", low: "high", high: "low", newLow: "newHigh", newHigh: "newLow" }[part];
  const speed = quantities.get(PER_GPU)[opposite][index];
  return speed ? (factor.hour / 3600 / speed) * 1e6 : null;
}

// The ends of the interval that is chosen; null without one.
function interval(key, index) {
  if (key === SIZE || state.interval === "none") return null;
  const fresh = state.interval === "new" && quantities.get(key)?.newLow;
  const low = figure(key, index, fresh ? "newLow" : "low"), high = figure(key, index, fresh ? "newHigh" : "high");
  return low === null || high === null ? null : [low, high];
}

// Whether the interval is from the launches' values, since the requests give none.
function isByLaunches(key, index) {
  return interval(key, index) !== null && Boolean(quantities.get(key).byLaunches?.includes(index));
}

function isPriced() {
  return cost !== undefined && state.prices.some((price) => price !== null);
}

function labelOf(key, short = false) {
  if (key === SIZE) return page.axis;
  const quantity = quantities.get(key);
  return short ? quantity.short : quantity.label;
}

function unitOf(key) {
  return key === SIZE ? "" : quantities.get(key).unit;
}

function withUnit(key, short = false) {
  const unit = unitOf(key);
  return unit && unit !== "×" ? `${labelOf(key, short)} (${unit})` : labelOf(key, short);
}

// Three significant digits, thousands set apart: 0.0123, 4.56, 789, 12,300.
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "—";
  if (value === 0) return "0";
  const digits = Math.min(20, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function shown(key, index) {
  if (key === SIZE) return points.sizeText[index];
  const mark = quantities.get(key).steady?.includes(index) ? "°" : ""; // as in the table of all points
  return quantities.get(key).lost[index] ?? number(figure(key, index)) + mark;
}

function shownInterval(key, index) {
  const range = interval(key, index);
  return range ? `${number(range[0])} to ${number(range[1])}` : "";
}

// The interval of a value for a reader, or the reason why it is missing; empty where intervals are not shown.
function intervalOrReason(key, index) {
  const source = isByLaunches(key, index) ? ", from the launches' values" : "";
  return (shownInterval(key, index) && shownInterval(key, index) + source) || (lacksInterval(key, index) ? `no interval: ${reasonWithoutInterval(key, index)}` : "");
}

function lacksInterval(key, index) {
  return key !== SIZE && state.interval !== "none" && figure(key, index) !== null && interval(key, index) === null;
}

function reasonWithoutInterval(key, index) {
  const quantity = quantities.get(key);
  if (quantity.compared) return "too few launches of it or of the baseline";
  const source = quantity.fewer ? quantity : quantities.get(PER_GPU); // a cost of a price that is set here has no count of its own
  const replicates = source.fewer[index] ?? points.n[index];
  if (state.interval === "new" && points.launches[index] === 1) return "one launch";
  return replicates === 1 ? "one replicate" : "requests too few or too dependent";
}

// An element with attributes and children; strings become text, so that nothing of the data is ever markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
