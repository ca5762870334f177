// The table of points, or of one answer for each configuration: columns, order, and its copy as CSV.

const ROWS_AT_ONCE = matchMedia("(max-width: 40rem)").matches ? 6 : 10; // a phone has a card for each
const MOST_COLUMNS = 6; // quantities that are shown unless others are chosen
const MORE_ROWS = 1000;
let rowsShown = ROWS_AT_ONCE;

// The quantities that decide come first: the goal, what the chart shows, what is bounded, the gain over the baseline.
function chosenColumns() {
  if (state.columns) return state.columns.split(",").filter((key) => quantities.has(key));
  const latencies = ["ttft", "tpot"].map((name) => `${name}_${state.percentile}`);
  const first = [state.goal, state.y, ...bounds().map((bound) => bound.key), "output_throughput_vs_baseline", state.x];
  const usual = [...first, COST, PER_GPU, ...latencies, "e2el_p50", "memory_peak_bytes", "goodput", "agreement"];
  const hasFigure = (key) => quantities.has(key) && everyPoint.some((index) => figure(key, index) !== null);
  return [...new Set(usual)].filter(hasFigure).slice(0, MOST_COLUMNS);
}

// The rows: a point each, or the answer of each configuration, in order.
function tableRows(inView) {
  const collapsed = state.one && state.goal;
  const limits = bounds();
  const rows = collapsed ? configurations(inView) : inView.map((index) => ({ index, ...tightest(index, limits) }));
  if (!state.sort) return rows;
  const value = sortValue(state.sort), sign = state.down ? -1 : 1;
  const missing = (each) => each === null || each === undefined || Number.isNaN(each);
  return rows
    .map((row) => [value(row), row])
    .sort(([one], [other]) => missing(one) - missing(other) || (missing(one) ? 0 : sign * (one < other ? -1 : one > other ? 1 : 0)))
    .map(([, row]) => row);
}

function sortValue(key) {
  if (key === "line") return (row) => page.lines[points.line[row.index]].toLowerCase();
  if (key === "n" || key === "failed") return (row) => points[key][row.index];
  if (key === "headroom") return (row) => row.headroom;
  return (row) => figure(key, row.index);
}

function tableColumns() {
  const columns = [{ key: "line", title: "configuration", unit: "", text: true }];
  if (page.axis) columns.push({ key: SIZE, title: page.axis.toLowerCase(), unit: "" });
  if (isBounded()) columns.push({ key: "headroom", title: "headroom", unit: "least of the bounds" });
  for (const key of chosenColumns()) columns.push({ key, title: labelOf(key, true), unit: unitOf(key) === "×" ? "" : unitOf(key) });
  columns.push({ key: "n", title: "n", unit: "" }, { key: "failed", title: "failed", unit: "requests" });
  return columns;
}

function drawTable(inView) {
  const rows = tableRows(inView), columns = tableColumns();
  const head = element("tr", {}, ...columns.map(headCell));
  const body = rows.slice(0, rowsShown).map((row) => element("tr", { class: rowClass(row) }, ...columns.map((column) => bodyCell(column, row))));
  byId("points-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  const more = rows.length - body.length;
  byId("more-rows").hidden = more <= 0;
  byId("more-rows").textContent = `Show ${Math.min(more, MORE_ROWS).toLocaleString("en-US")} more rows (${more.toLocaleString("en-US")} not shown)`;
  byId("row-count").textContent = `${rows.length.toLocaleString("en-US")} ${state.one ? "configuration" : "point"}${rows.length === 1 ? "" : "s"}`;
  byId("verdict").textContent = state.one && state.goal ? verdict(configurations(inView)) : "";
}

function rowClass(row) {
  const over = isBounded() && points.n[row.index] && !(row.headroom >= 0);
  return [over ? "over" : "", points.n[row.index] ? "" : "without", points.name[row.index] === state.point ? "selected" : ""].filter(Boolean).join(" ");
}

function headCell(column) {
  const sorted = state.sort === column.key ? (state.down ? "descending" : "ascending") : "none";
  const arrow = { ascending: "▲", descending: "▼", none: "" }[sorted];
  const button = element("button", { type: "button", "data-sort": column.key, onclick: () => sortBy(column.key) },
    column.title, element("i", { "aria-hidden": "true" }, arrow));
  return element("th", { scope: "col", class: column.text ? "text" : "", "aria-sort": sorted }, button,
    column.unit ? element("span", {}, column.unit) : null);
}

function sortBy(key) {
  const descendsFirst = quantities.get(key)?.better === "higher";
  if (state.sort !== key) Object.assign(state, { sort: key, down: descendsFirst });
  else if (state.down === descendsFirst) state.down = !descendsFirst;
  else Object.assign(state, { sort: "", down: false });
  update();
  byId("points-table").querySelector(`[data-sort="${key}"]`).focus();
}

function bodyCell(column, row) {
  const index = row.index, label = { "data-label": column.unit ? `${column.title} (${column.unit})` : column.title };
  if (column.key === "line") return nameCell(index, label);
  if (column.key === SIZE) return element("td", label, points.sizeText[index]);
  if (column.key === "n") return element("td", label, points.n[index] ? String(points.n[index]) : points.outcomes[index]);
  if (column.key === "failed") return element("td", label, points.n[index] ? String(points.failed[index] ?? 0) : "—");
  if (column.key === "headroom") return element("td", label, headroomText(row));
  const range = shownInterval(column.key, index);
  return element("td", label, shown(column.key, index), range ? element("span", {}, range) : null);
}

function headroomText(row) {
  if (!points.n[row.index]) return "—";
  if (!Number.isFinite(row.headroom)) return "unknown";
  return row.headroom < 0 ? `${percent(-row.headroom)} over` : percent(row.headroom) + (row.surely ? "" : ", not certain");
}

function nameCell(index, label) {
  const line = points.line[index];
  const name = element("button", { type: "button", class: "name", onclick: () => select(index) }, page.lines[line]);
  const mark = graphic("svg", { class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true" });
  mark.append(graphic("path", { d: shapeOf(line)(6, 6, 4), fill: colourOf(line) }));
  const severe = points.warnings[index].filter(([, severity]) => severity === "severe"); // a sign on every row is on none
  const warnings = severe.map(([code, severity, message]) =>
    element("a", { class: `mark ${severity}`, href: `#warning-${code}`, title: message, "aria-label": `warning: ${message}` }, "⚠"));
  return element("td", { ...label, class: "text" }, mark, name, ...warnings.slice(0, 1));
}

// What the table shows, all its rows, with the ends of the intervals in separate columns.
function csv() {
  const columns = tableColumns(), lines = [];
  const heading = (column) => (column.unit ? `${column.title} (${column.unit})` : column.title);
  const measured = (column) => quantities.has(column.key);
  lines.push(["task", ...columns.flatMap((column) => (measured(column) ? [heading(column), `${heading(column)} low`, `${heading(column)} high`] : [heading(column)]))]);
  for (const row of tableRows(pointsInView())) {
    lines.push([page.tasks[state.task], ...columns.flatMap((column) => csvCells(column, row))]);
  }
  return lines.map((cells) => cells.map(csvText).join(",")).join("\r\n") + "\r\n";
}

function csvCells(column, row) {
  const index = row.index;
  if (quantities.has(column.key)) return [figure(column.key, index), ...(interval(column.key, index) ?? ["", ""])];
  if (column.key === "line") return [page.lines[points.line[index]]];
  if (column.key === SIZE) return [points.size[index]];
  if (column.key === "headroom") return [Number.isFinite(row.headroom) ? row.headroom : ""];
  return [points[column.key][index]];
}

// A text that a spreadsheet would take for a formula is made a text.
function csvText(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
