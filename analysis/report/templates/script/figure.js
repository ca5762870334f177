// The chart: points with their intervals, lines along the loads, the Pareto front and the bounds, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 14, right: 18, bottom: 44, left: 62 };
const COLOURS = 7; // --line-0 … --line-6 of the style sheet
const RADIUS = 4.5;
const LOGARITHMIC_FROM = 30; // as in the charts that are files
const REACH = 1.5; // times the largest value: how far an axis extends for whiskers, which can be very long
const SHAPES = [
  (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (x, y, r) => `M${x},${y - r * 1.2}l${r * 1.2},${r * 2.1}h${-r * 2.4}z`,
  (x, y, r) => `M${x},${y - r * 1.3}l${r * 1.3},${r * 1.3}l${-r * 1.3},${r * 1.3}l${-r * 1.3},${-r * 1.3}z`,
  (x, y, r) => `M${x},${y + r * 1.2}l${r * 1.2},${-r * 2.1}h${-r * 2.4}z`,
  (x, y, r) => `M${x - r * 0.4},${y - r * 1.2}h${r * 0.8}v${r * 0.8}h${r * 0.8}v${r * 0.8}h${-r * 0.8}v${r * 0.8}h${-r * 0.8}v${-r * 0.8}h${-r * 0.8}v${-r * 0.8}h${r * 0.8}z`,
  (x, y, r) => `M${x - r},${y - r * 0.5}l${r * 0.5},${-r * 0.5}l${r * 0.5},${r * 0.5}l${r * 0.5},${-r * 0.5}l${r * 0.5},${r * 0.5}l${-r * 0.5},${r * 0.5}l${r * 0.5},${r * 0.5}l${-r * 0.5},${r * 0.5}l${-r * 0.5},${-r * 0.5}l${-r * 0.5},${r * 0.5}l${-r * 0.5},${-r * 0.5}l${r * 0.5},${-r * 0.5}z`,
];
const MOST_LABELS = 40; // of sizes beside the marks
let drawn = []; // the points in the chart: {index, x, y}
let cursor = -1; // the one that the keyboard is at, in `drawn`

const colourOf = (line) => `var(--line-${line % COLOURS})`;
const shapeOf = (line) => SHAPES[line % COLOURS];
const dashOf = (line) => ["none", "6 3", "2 3"][Math.floor(line / COLOURS) % 3];

function graphic(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// An axis from pixel `begin` to `end`: from zero, or logarithmic where small values would be invisible.
function axisScale(key, indices, begin, end) {
  const isLoad = key === SIZE, usable = indices.map((index) => figure(key, index)).filter((value) => value > 0);
  if (!usable.length) return { at: () => (begin + end) / 2, ticks: [], low: 0, high: 1 };
  const least = Math.min(...usable), most = Math.max(...usable), ends = indices.map((index) => interval(key, index)).filter(Boolean);
  const logarithmic = most / least >= (isLoad ? 4 : LOGARITHMIC_FROM);
  const lowest = Math.max(least / REACH, Math.min(least, ...ends.map(([bottom]) => bottom)));
  const highest = Math.min(most * REACH, Math.max(most, ...ends.map(([, top]) => top)));
  const [low, high] = logarithmic ? [lowest / 1.25, highest * 1.25] : [0, highest * 1.08];
  const place = logarithmic ? (value) => Math.log(value / low) / Math.log(high / low) : (value) => (value - low) / (high - low);
  const at = (value) => begin + (end - begin) * Math.min(1, Math.max(0, value <= 0 && logarithmic ? 0 : place(value)));
  const own = isLoad ? [...new Set(usable)] : [];
  const ticks = own.length && own.length <= 9 ? own : logarithmic ? logTicks(low, high) : linearTicks(high, Math.abs(end - begin));
  return { at, ticks, low, high };
}

function linearTicks(high, pixels) {
  const rough = high / Math.max(2, Math.floor(pixels / 80)), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, index) => index * step);
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of Math.log10(high / low) > 3 ? [1] : [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return ticks;
}

const tickText = (value) => (Math.abs(value) >= 10 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3))));

function drawFigure(inView) {
  const holder = byId("plot"), width = Math.max(280, holder.clientWidth), height = width < 520 ? 320 : 400;
  const measured = inView.filter((index) => figure(state.x, index) > 0 && figure(state.y, index) > 0);
  const front = hasFront() ? paretoFront(measured, state.x, state.y) : [];
  const visible = state.front && hasFront() ? front : measured;
  const x = axisScale(state.x, measured, MARGIN.left, width - MARGIN.right);
  const y = axisScale(state.y, measured, height - MARGIN.bottom, MARGIN.top);
  drawn = visible.map((index) => ({ index, x: x.at(figure(state.x, index)), y: y.at(figure(state.y, index)) }));
  drawn.sort((one, other) => one.x - other.x);
  cursor = -1;
  const canvas = graphic("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  drawAxes(canvas, x, y, width, height);
  drawBounds(canvas, x, y, width, height);
  if (front.length > 1) drawFront(canvas, front, x, y);
  drawLines(canvas, x, y);
  canvas.append(graphic("path", { id: "highlight", d: "", class: "highlight" }));
  if (!drawn.length) {
    canvas.append(graphic("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty" }, "no point has both values"));
  }
  holder.replaceChildren(canvas, byId("tip"));
  holder.classList.toggle("few", drawn.length <= 3); // whiskers across the whole chart say little
  const without = inView.length - measured.length;
  holder.setAttribute("aria-label", `${withUnit(state.y)} against ${withUnit(state.x)}, ${page.tasks[state.task]}: ${drawn.length} points. Arrow keys move from point to point, Enter selects one.`);
  const isCut = (key, axis, index) => interval(key, index)?.some((end) => isBeyond(axis, end));
  const remarks = {
    cut: visible.some((index) => isCut(state.x, x, index) || isCut(state.y, y, index)),
    bare: visible.some((index) => lacksInterval(state.x, index) || lacksInterval(state.y, index)),
    byLaunches: visible.some((index) => isByLaunches(state.x, index) || isByLaunches(state.y, index)),
  };
  byId("figure-note").textContent = figureNote(front, without, remarks);
}

// The last argument: an interval that extends beyond the axes, a value without an interval, an interval from the launches.
function figureNote(front, without, { cut, bare, byLaunches }) {
  const whiskers = { these: "Whiskers: 95% interval of these launches.", new: "Whiskers: 95% interval of a new launch.", none: "" };
  const better = { higher: "higher is better", lower: "lower is better" };
  const direction = [["↕", state.y], ["↔", state.x]].map(([arrow, key]) => [arrow, better[quantities.get(key)?.better]]).filter((pair) => pair[1]);
  return [
    direction.map((pair) => pair.join(" ")).join(", ") + (direction.length ? "." : ""),
    whiskers[state.interval],
    byLaunches ? "If the requests are too few, the interval is from the launches' values." : "",
    cut ? "An arrowhead: the interval continues beyond the chart." : "",
    bare ? "No whisker in a direction: that value has no interval; point at the mark for the reason." : "",
    front.length > 1 ? "Dashed steps: Pareto front; no other point is as good in both values." : "",
    isBounded() ? "Faded: over a bound." : "",
    without ? `${without} of the points in view have no result, or lack one of the values.` : "",
  ].filter(Boolean).join(" ");
}

function drawAxes(canvas, x, y, width, height) {
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
  for (const tick of x.ticks) {
    canvas.append(graphic("line", { x1: x.at(tick), x2: x.at(tick), y1: top, y2: bottom, class: "grid" }));
    canvas.append(graphic("text", { x: x.at(tick), y: bottom + 17, "text-anchor": "middle", class: "tick" }, tickText(tick)));
  }
  for (const tick of y.ticks) {
    canvas.append(graphic("line", { x1: left, x2: right, y1: y.at(tick), y2: y.at(tick), class: "grid" }));
    canvas.append(graphic("text", { x: left - 8, y: y.at(tick) + 4, "text-anchor": "end", class: "tick" }, tickText(tick)));
  }
  canvas.append(graphic("path", { d: `M${left},${top}V${bottom}H${right}`, class: "frame" }));
  canvas.append(graphic("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle", class: "title" }, withUnit(state.x)));
  canvas.append(graphic("text", { transform: `translate(15,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "title" }, withUnit(state.y)));
}

function drawBounds(canvas, x, y, width, height) {
  for (const bound of bounds()) {
    const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
    if (bound.key === state.x && bound.limit < x.high) {
      canvas.append(graphic("line", { x1: x.at(bound.limit), x2: x.at(bound.limit), y1: top, y2: bottom, class: "bound" }));
    } else if (bound.key === state.y && bound.limit < y.high) {
      canvas.append(graphic("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(bound.limit), y2: y.at(bound.limit), class: "bound" }));
    }
  }
}

function drawFront(canvas, front, x, y) {
  const [first, ...others] = front.map((index) => [x.at(figure(state.x, index)).toFixed(1), y.at(figure(state.y, index)).toFixed(1)]);
  canvas.append(graphic("path", { d: `M${first}${others.map(([atX, atY]) => `H${atX}V${atY}`).join("")}`, class: "front" }));
}

// One path a line for its marks, its whiskers and its course: thousands of points are a few dozen elements.
function drawLines(canvas, x, y) {
  const limits = bounds(), ofLine = new Map();
  for (const place of drawn) {
    const line = points.line[place.index];
    if (!ofLine.has(line)) ofLine.set(line, []);
    ofLine.get(line).push(place);
  }
  for (const [line, places] of ofLine) {
    const colour = colourOf(line), paths = { course: "", whiskers: "", fadedWhiskers: "", marks: "", faded: "" };
    const along = page.axis && !state.front ? [...places].sort((one, other) => points.size[one.index] - points.size[other.index]) : [];
    if (along.length <= 100) paths.course = along.map((place, step) => `${step ? "L" : "M"}${place.x.toFixed(1)},${place.y.toFixed(1)}`).join("");
    for (const place of places) {
      const meets = tightest(place.index, limits).headroom >= 0;
      paths[meets ? "marks" : "faded"] += shapeOf(line)(round(place.x), round(place.y), RADIUS);
      paths[meets ? "whiskers" : "fadedWhiskers"] += whiskers(place, x, y);
    }
    canvas.append(graphic("path", { d: paths.course, class: "course", stroke: colour, "stroke-dasharray": dashOf(line) }));
    canvas.append(graphic("path", { d: paths.whiskers, class: "whiskers", stroke: colour }));
    canvas.append(graphic("path", { d: paths.fadedWhiskers, class: "whiskers faded-whiskers", stroke: colour }));
    canvas.append(graphic("path", { d: paths.faded, class: "faded", fill: colour }));
    canvas.append(graphic("path", { d: paths.marks, class: "marks", fill: colour }));
    if (state.x === SIZE || state.y === SIZE || drawn.length > MOST_LABELS) continue;
    for (const place of places) canvas.append(graphic("text", { x: round(place.x + 7), y: round(place.y - 6), class: "size" }, points.sizeText[place.index]));
  }
}

const round = (pixels) => Math.round(pixels * 10) / 10;

const isBeyond = (axis, value) => value < axis.low || value > axis.high;

// The two intervals of a point; an end beyond the axis has an arrowhead.
function whiskers(place, x, y) {
  const [across, up] = [interval(state.x, place.index), interval(state.y, place.index)];
  const [atX, atY] = [round(place.x), round(place.y)];
  let path = "";
  if (up) path += `M${atX},${round(y.at(up[0]))}V${round(y.at(up[1]))}`;
  if (across) path += `M${round(x.at(across[0]))},${atY}H${round(x.at(across[1]))}`;
  for (const end of (up ?? []).filter((value) => isBeyond(y, value))) {
    path += `M${atX - 3},${round(y.at(end)) + (end > y.high ? 4 : -4)}l3,${end > y.high ? -4 : 4}l3,${end > y.high ? 4 : -4}`;
  }
  for (const end of (across ?? []).filter((value) => isBeyond(x, value))) {
    path += `M${round(x.at(end)) + (end > x.high ? -4 : 4)},${atY - 3}l${end > x.high ? 4 : -4},3l${end > x.high ? -4 : 4},3`;
  }
  return path;
}

function nearest(clientX, clientY) {
  const box = byId("plot").querySelector("svg").getBoundingClientRect();
  const [x, y] = [clientX - box.left, clientY - box.top];
  let best = -1, least = 30 ** 2; // pixels
  drawn.forEach((place, position) => {
    const distance = (place.x - x) ** 2 + (place.y - y) ** 2;
    if (distance < least) [best, least] = [position, distance];
  });
  return best;
}

// Marks a point of the chart and shows its values beside it; -1: none.
function pointAt(position) {
  const place = drawn[position], tip = byId("tip"), highlight = byId("highlight");
  tip.hidden = !place;
  highlight.setAttribute("d", place ? SHAPES[0](place.x, place.y, RADIUS + 4) : "");
  if (!place) return;
  const rows = [state.y, state.x].map((key) => tipRow(key, place.index));
  const warnings = points.warnings[place.index].length;
  const foot = `n = ${points.n[place.index]}${warnings ? `, ${warnings} warning${warnings > 1 ? "s" : ""}` : ""}`;
  tip.replaceChildren(element("b", {}, points.name[place.index]), ...rows, element("small", {}, foot));
  const width = byId("plot").clientWidth;
  tip.style.left = `${Math.max(0, Math.min(place.x + 14, width - tip.offsetWidth - 2))}px`;
  tip.style.top = `${place.y > 150 ? place.y - tip.offsetHeight - 12 : place.y + 14}px`;
}

function tipRow(key, index) {
  const range = intervalOrReason(key, index);
  return element("span", {}, `${labelOf(key, true)}: `, element("b", {}, `${shown(key, index)} ${unitOf(key)}`), range ? ` (${range})` : "");
}
