// One point in full: all its figures, its warnings, its trials with their files, and the command that runs it again.

function select(index) {
  state.point = state.point === points.name[index] ? "" : points.name[index];
  update();
  if (state.point) byId("details").scrollIntoView({ block: "nearest" });
}

function drawDetails() {
  const index = state.point ? points.name.indexOf(state.point) : -1, holder = byId("details");
  holder.hidden = index < 0;
  if (index < 0) return holder.replaceChildren();
  const close = element("button", { type: "button", class: "quiet", onclick: () => select(index) }, "Close");
  const figures = [...quantities.keys()].filter((key) => shown(key, index) !== "—").map((key) => detailRow(key, index));
  const warnings = points.warnings[index].map(([code, severity, message]) =>
    element("li", { class: severity }, element("a", { href: `#warning-${code}` }, code), `: ${message}`));
  holder.replaceChildren(
    element("div", { class: "bar" }, element("h3", {}, points.name[index]), close),
    points.n[index] ? "" : element("p", { class: "bad" }, `No result: ${points.outcomes[index]}`),
    warnings.length ? element("ul", { class: "point-warnings" }, ...warnings) : "",
    element("dl", { class: "figures-of-point" }, ...figures.flat()),
    trialsTable(index),
    commandBlock(index),
  );
}

function detailRow(key, index) {
  const range = shownInterval(key, index);
  return [element("dt", {}, labelOf(key)), element("dd", {}, `${shown(key, index)} ${unitOf(key)}`, range ? element("span", {}, ` ${range}`) : "")];
}

function trialsTable(index) {
  const head = element("tr", {}, ...["trial", "replicate", "outcome", "files"].map((title) => element("th", { scope: "col", class: "text" }, title)));
  const rows = points.trials[index].map(([id, replicate, outcome, folder]) =>
    element("tr", {}, element("td", { class: "text" }, element("code", {}, id)), element("td", { class: "text" }, replicate === null ? "—" : String(replicate)),
      element("td", { class: "text" }, outcome), element("td", { class: "text" }, ...fileLinks(folder, id))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

// Files lie beside the report; a report that was sent alone has none.
function fileLinks(folder, id) {
  if (!folder) return ["—"];
  const path = (...parts) => [...folder.split("/"), ...parts].map(encodeURIComponent).join("/");
  const files = { "engine log": path("engine.log"), requests: path(id, "requests.parquet"), telemetry: path(id, "telemetry.parquet") };
  return Object.entries(files).flatMap(([title, href]) => [element("a", { href }, title), " "]);
}

function commandBlock(index) {
  const command = points.again?.[index];
  if (!command) return "";
  const results = points.trials[index].filter(([, , outcome]) => outcome === "ok");
  const other = results.length > 1 && command.includes("#") ? element("span", {}, "another trial: its id after #") : "";
  const copy = element("button", { type: "button", class: "quiet", onclick: () => copyText(command, copy) }, "Copy");
  return element("div", { class: "again" }, element("span", {}, "Run it again"), element("code", {}, command), copy, other);
}

async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = element("textarea", { class: "offscreen" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy"); // where the clipboard is not open to a file
    field.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}
