// The controls: they are made from the data, set the state, and are set by it.

const SLIDER_STEPS = 200, TYPING_PAUSE = 300; // ms

function update() {
  rowsShown = ROWS_AT_ONCE;
  writeFragment();
  draw();
}

function draw() {
  const inView = pointsInView();
  setControls();
  drawFigure(inView);
  drawTable(inView);
  drawDetails();
}

function fillSelect(id, options) {
  byId(id).replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  byId(id).addEventListener("change", (event) => {
    state[id] = id === "task" ? Number(event.target.value) : event.target.value;
    update();
  });
}

function makeControls() {
  const axes = [...quantities.keys()].map((key) => [key, withUnit(key)]);
  fillSelect("task", page.tasks.map((task, index) => [index, task]));
  fillSelect("y", axes);
  fillSelect("x", page.axis ? [[SIZE, page.axis], ...axes] : axes);
  fillSelect("interval", [["these", "of these launches"], ["new", "of a new launch"], ["none", "not shown"]]);
  fillSelect("percentile", page.percentiles.names.map((name) => [name, name]));
  fillSelect("goal", [...quantities.values()].filter((quantity) => quantity.better).map((quantity) => [quantity.key, quantity.short]));
  for (const name of ["front", "one"]) byId(name).addEventListener("change", (event) => { state[name] = event.target.checked; update(); });
  byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; update(); });
  byId("bounds").append(...BOUNDED.filter((name) => [...quantities.keys()].some((key) => key.startsWith(`${name}_`))).map(boundControl));
  byId("prices").append(...page.machines.map(priceControl));
  byId("prices").hidden = !quantities.has(PER_GPU);
  byId("legend").replaceChildren(...legendButtons());
  byId("columns").append(...[...quantities.values()].map(columnChoice));
  byId("csv").addEventListener("click", downloadCsv);
  byId("copy-link").addEventListener("click", (event) => copyText(linkToView(), event.currentTarget));
  byId("reset").addEventListener("click", () => { Object.assign(state, defaults); update(); });
  byId("more-rows").addEventListener("click", () => { rowsShown += MORE_ROWS; drawTable(pointsInView()); });
  followPointer(byId("plot"));
}

// For a local file only its name: its folder is of no use on another machine.
function linkToView() {
  return location.protocol === "file:" ? location.pathname.split("/").at(-1) + location.hash : location.href;
}

// A slider with a field for the exact value; `range` gives its ends, and its far end is no bound.
function sliderRow(label, unit, slider, field) {
  slider.setAttribute("aria-label", `${label}, slider`);
  return element("div", { class: "slider" }, element("label", {}, label, element("span", { class: "field" }, field, unit)), slider);
}

// The least and the most of a latency over the points of the task, in s.
function latencyRange(name) {
  const key = `${name}_${state.percentile}`;
  const values = everyPoint.filter((index) => points.task[index] === state.task).map((index) => figure(key, index)).filter((value) => value > 0);
  return values.length ? [Math.min(...values) / 1000 / 1.2, (Math.max(...values) / 1000) * 1.2] : null;
}

// Calls `apply` when typing pauses, and when the field is left.
function whenTyped(field, apply) {
  let timer = 0;
  field.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, TYPING_PAUSE); });
  field.addEventListener("change", () => { clearTimeout(timer); apply(); });
}

function show(field, value) {
  if (document.activeElement !== field || positive(field.value) !== positive(value)) field.value = value;
}

function boundControl(name) {
  const slider = element("input", { type: "range", min: 0, max: SLIDER_STEPS, step: 1, id: `${name}-slider` });
  const field = element("input", { type: "number", min: 0, step: "any", id: name, placeholder: "any" });
  slider.addEventListener("input", () => {
    const range = latencyRange(name), step = Number(slider.value);
    const limit = range && step < SLIDER_STEPS ? range[0] * (range[1] / range[0]) ** (step / SLIDER_STEPS) : null;
    setBound(name, limit === null ? null : Number(limit.toPrecision(3)));
  });
  whenTyped(field, () => {
    const limit = positive(field.value) === null ? null : positive(field.value) / 1000;
    if (limit !== state[name]) setBound(name, limit);
  });
  return sliderRow(`${name.toUpperCase()} at most`, "ms", slider, field);
}

function setBound(name, limit) {
  if (limit !== null && !isBounded()) state.one = true; // the table becomes one answer per configuration
  state[name] = limit;
  if (!isBounded() && !Object.keys(page.slo).length) state.one = false;
  update();
}

function priceControl(machine, index) {
  const usual = page.prices[index] ?? 1;
  const slider = element("input", { type: "range", min: 0, max: SLIDER_STEPS, step: 1, id: `price-${index}-slider` });
  const field = element("input", { type: "number", min: 0, step: "any", id: `price-${index}`, placeholder: "none" });
  const set = (price) => {
    state.prices = state.prices.map((old, position) => (position === index ? price : old));
    if (isPriced()) Object.assign(state, { goal: COST, one: true }); // as a bound does: one answer per configuration
    update();
  };
  slider.dataset.usual = usual; // the middle; the ends are a tenth and ten times of it
  slider.addEventListener("input", () => set(Number((usual * 100 ** (slider.value / SLIDER_STEPS - 0.5)).toPrecision(3))));
  whenTyped(field, () => { if (positive(field.value) !== state.prices[index]) set(positive(field.value)); });
  return sliderRow(page.machines.length > 1 || page.onGpus ? machine : "Machine", page.onGpus ? "$/GPU-h" : "$/h", slider, field);
}

function legendButtons() {
  return page.lines.map((line, index) => {
    const button = element("button", { type: "button", "data-line": index, onclick: () => toggleLine(index) });
    const mark = graphic("svg", { class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true" });
    mark.append(graphic("path", { d: shapeOf(index)(6, 6, 4), fill: colourOf(index) }));
    button.append(mark, line);
    return button;
  });
}

function toggleLine(line) {
  const hidden = hiddenLines();
  if (!hidden.delete(line)) hidden.add(line);
  state.hidden = [...hidden].sort((one, other) => one - other).join(",");
  update();
}

function columnChoice(quantity) {
  const box = element("input", { type: "checkbox", value: quantity.key });
  box.addEventListener("change", () => {
    const chosen = [...byId("columns").querySelectorAll("input:checked")].map((each) => each.value);
    const kept = chosenColumns().filter((key) => chosen.includes(key));
    state.columns = [...new Set([...kept, ...chosen])].join(",");
    update();
  });
  return element("label", { class: "check" }, box, withUnit(quantity.key));
}

function setControls() {
  for (const id of ["task", "y", "x", "interval", "percentile", "goal"]) byId(id).value = String(state[id]);
  for (const id of ["front", "one"]) byId(id).checked = state[id];
  byId("front").disabled = !hasFront();
  if (byId("filter").value !== state.filter) byId("filter").value = state.filter;
  for (const name of BOUNDED.filter((each) => byId(each))) {
    const range = latencyRange(name), limit = state[name];
    show(byId(name), limit === null ? "" : Number((limit * 1000).toPrecision(4)));
    const step = limit === null || !range ? SLIDER_STEPS : (SLIDER_STEPS * Math.log(limit / range[0])) / Math.log(range[1] / range[0]);
    byId(`${name}-slider`).value = step;
    byId(`${name}-slider`).setAttribute("aria-valuetext", limit === null ? "no bound" : `${number(limit * 1000)} ms`);
  }
  state.prices.forEach((price, index) => {
    const slider = byId(`price-${index}-slider`);
    show(byId(`price-${index}`), price ?? "");
    slider.value = price === null ? 0 : SLIDER_STEPS * (Math.log(price / slider.dataset.usual) / Math.log(100) + 0.5);
    slider.setAttribute("aria-valuetext", price === null ? "no price" : `$${price}`);
  });
  const hidden = hiddenLines(), columns = new Set(chosenColumns());
  for (const button of byId("legend").children) button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.line))));
  for (const box of byId("columns").querySelectorAll("input")) box.checked = columns.has(box.value);
}

function followPointer(plot) {
  plot.addEventListener("pointermove", (event) => pointAt(nearest(event.clientX, event.clientY)));
  plot.addEventListener("pointerleave", () => pointAt(-1));
  plot.addEventListener("click", (event) => {
    const place = drawn[nearest(event.clientX, event.clientY)];
    if (place) select(place.index);
  });
  plot.addEventListener("blur", () => pointAt(-1));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step) cursor = Math.min(drawn.length - 1, Math.max(0, cursor + step));
    else if (event.key === "Escape") cursor = -1;
    else if (event.key === "Enter" && drawn[cursor]) return select(drawn[cursor].index);
    else return;
    event.preventDefault();
    pointAt(cursor);
    byId("plot-says").textContent = drawn[cursor] ? byId("tip").textContent : "";
  });
}

function downloadCsv() {
  const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  const link = element("a", { href: address, download: `${page.run}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

makeControls();
readFragment();
draw();
addEventListener("hashchange", () => { if (location.hash.startsWith(FRAGMENT)) { readFragment(); draw(); } });
new ResizeObserver(() => { if (byId("plot").querySelector("svg").clientWidth !== byId("plot").clientWidth) draw(); }).observe(byId("plot"));
