// One point in full: all its values, its warnings, its trials with their files, the command that runs it again,
// and the line that reads one trial's rows from among other trials' rows.

function select(index) {
  state.point = state.point === points.name[index] ? "" : points.name[index];
  writeFragment();
  draw(); // the rows stay, also those that "Show more" has added
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
    readBlock(index),
  );
}

function detailRow(key, index) {
  const range = shownInterval(key, index);
  return [element("dt", {}, labelOf(key)), element("dd", {}, `${shown(key, index)} ${unitOf(key)}`, range ? element("span", {}, ` ${range}`) : "")];
}

function trialsTable(index) {
  const head = element("tr", {}, ...["trial", "replicate", "outcome", "files"].map((title) => element("th", { scope: "col", class: "text" }, title)));
  const rows = points.trials[index].map(([id, replicate, outcome, places]) =>
    element("tr", {}, element("td", { class: "text" }, element("code", {}, id)), element("td", { class: "text" }, replicate === null ? "—" : String(replicate)),
      element("td", { class: "text" }, outcome), element("td", { class: "text" }, ...fileLinks(places))));
  return element("div", { class: "scroll" }, element("table", { "aria-label": "Trials" }, element("thead", {}, head), element("tbody", {}, ...rows)));
}

// Files are beside the report; a report that was sent alone has no files.
function fileLinks(places) {
  if (!places.length) return ["—"];
  return places.map((place) => page.files[place]).flatMap(([title, path]) =>
    [element("a", { href: path.split("/").map(encodeURIComponent).join("/") }, title), " "]);
}

function commandBlock(index) {
  const command = points.again?.[index];
  const results = points.trials[index].filter(([, , outcome]) => outcome === "ok");
  const note = results.length > 1 && command?.includes("#") ? "another trial: its id after #" : "";
  return copyBlock("Run it again", command, note);
}

// If the files of many trials were combined, a link leads to the rows of all those trials.
function readBlock(index) {
  return copyBlock("Read one trial's requests", points.reads[index], "telemetry: analysis.telemetry; another trial: its id");
}

function copyBlock(title, line, note) {
  if (!line) return "";
  const copy = element("button", { type: "button", class: "quiet", onclick: () => copyText(line, copy) }, "Copy");
  return element("div", { class: "again" }, element("span", {}, title), element("code", {}, line), copy, note ? element("span", {}, note) : "");
}

async function copyText(text, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copySelected(text); // where the clipboard is not open to a file
    button.focus();
  }
  button.dataset.label ??= button.textContent; // a second click finds "Copied" there
  button.textContent = copied ? "Copied" : "Not copied";
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => { button.textContent = button.dataset.label; }, 1500);
}

function copySelected(text) {
  const field = element("textarea", { class: "offscreen" });
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  return copied;
}
