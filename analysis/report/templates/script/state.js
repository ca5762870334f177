// What is chosen on the page, and its copy in the address: #explore?task=…, which can be sent and reloaded.

const FRAGMENT = "#explore?";
const pointsOf = page.tasks.map((_, task) => points.task.filter((of, index) => of === task && points.n[index]).length);
const defaults = {
  task: Math.max(0, pointsOf.indexOf(Math.max(...pointsOf))), // the task with the most to see
  y: quantities.has(PER_GPU) ? PER_GPU : [...quantities.keys()][0] ?? SIZE,
  x: [USER_SPEED, "e2el_p50", "batch_latency_p50"].find((key) => quantities.has(key)) ?? SIZE,
  interval: "these",
  front: false,
  hidden: "", // numbers of lines that are switched off
  percentile: page.percentiles.usual,
  ttft: page.slo.ttft ?? null,
  tpot: page.slo.tpot ?? null,
  e2el: page.slo.e2el ?? null,
  prices: page.prices,
  one: Object.keys(page.slo).length > 0,
  goal: new Set(page.prices).size > 1 && !page.prices.includes(null) && cost ? COST : quantities.has(PER_GPU) ? PER_GPU : "",
  filter: "",
  sort: "",
  down: false,
  columns: "",
  point: "",
};
const state = { ...defaults };

function readFragment() {
  Object.assign(state, defaults);
  if (!location.hash.startsWith(FRAGMENT)) return;
  const given = new URLSearchParams(location.hash.slice(FRAGMENT.length));
  const task = page.tasks.indexOf(given.get("task"));
  if (task >= 0) state.task = task;
  for (const name of ["y", "x", "goal", "sort"]) {
    const key = given.get(name);
    if (quantities.has(key) || (key === SIZE && page.axis)) state[name] = key;
    else if (name === "sort" && ["line", "n", "failed", "headroom"].includes(key)) state.sort = key;
  }
  for (const name of ["interval", "percentile"]) {
    if ([...byId(name).options].some((option) => option.value === given.get(name))) state[name] = given.get(name);
  }
  for (const name of ["front", "one", "down"]) if (given.has(name)) state[name] = given.get(name) === "1";
  for (const name of ["hidden", "filter", "columns", "point"]) state[name] = given.get(name) ?? state[name];
  for (const name of BOUNDED) if (given.has(name)) state[name] = positive(given.get(name));
  if (given.has("prices")) {
    const prices = given.get("prices").split(",");
    state.prices = page.prices.map((price, index) => (index in prices ? positive(prices[index]) : price));
  }
}

function positive(text) {
  const value = Number.parseFloat(text);
  return Number.isFinite(value) && value > 0 ? value : null;
}

function writeFragment() {
  const chosen = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (String(value) === String(defaults[name])) continue;
    if (name === "task") chosen.set(name, page.tasks[value]);
    else if (typeof value === "boolean") chosen.set(name, value ? "1" : "0");
    else chosen.set(name, name === "prices" ? value.map((price) => price ?? "").join(",") : String(value ?? "none"));
  }
  const text = chosen.toString();
  if (!text && !location.hash.startsWith(FRAGMENT)) return;
  history.replaceState(null, "", text ? FRAGMENT + text : "#explore");
}

function hiddenLines() {
  return new Set(state.hidden.split(",").filter(Boolean).map(Number));
}
