"use strict";
// Everything that a data set or a model said reaches the page through text nodes and through `src` of data: pictures, never as markup.
const json = (id) => JSON.parse(document.getElementById(id).textContent);
const $ = (id) => document.getElementById(id);
const data = json("data");
const CHUNK = 40;

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}
function s(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
const fixed = (x, digits = 1) => (x === null || x === undefined ? "-" : x.toFixed(digits).replace("-", "\u2212"));
const signed = (x, digits = 1) => (x > 0 ? "+" : "") + fixed(x, digits);
const count = (n) => n.toLocaleString("en");
const digitsOf = (column) => (column.unit === "points" ? 0 : 1);
const swatch = (row) => h("span", { class: row.colour === null ? "swatch none" : `swatch c${row.colour}`, "aria-hidden": "true" });

// --- head -------------------------------------------------------------------------------------------------------------------

const measured = data.rows.filter((row) => row.source === "measured");
$("title").textContent = data.suite.name;
$("lead").textContent = `${data.suite.note.charAt(0).toUpperCase()}${data.suite.note.slice(1)}.`;
const ranked = data.rows.some((row) => Object.values(row.cells).some((cell) => cell.rank));
$("legend").textContent =
  "Below a number: its 95 % interval, by picture." +
  (ranked ? " Bold: best, underlined: second best, among rows that differ in the encoder alone." : "");

// --- table ------------------------------------------------------------------------------------------------------------------

let order = { name: null, down: true };
function sortedRows() {
  const rows = data.rows.filter((row) => row.source === "measured" || $("paper").checked);
  if (!order.name) return rows;
  const key = (row) => (order.name === "encoder" ? row.name : (row.cells[order.name] || {}).value);
  const missing = (value) => value === null || value === undefined;
  return rows.slice().sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    if (missing(a) || missing(b)) return missing(a) - missing(b); // what is missing stands last, whichever way it is sorted
    const way = typeof a === "string" ? a.localeCompare(b) : a - b;
    return order.down ? -way : way;
  });
}
function sortBy(name) {
  const first = name !== "encoder"; // numbers start with the largest, names with a
  if (order.name !== name) order = { name, down: first };
  else if (order.down === first) order = { name, down: !first };
  else order = { name: null, down: true };
  pinned = null;
  hide();
  drawTable();
  const again = document.querySelector(`[data-sort="${CSS.escape(name)}"]`);
  enter(again);
  again.focus();
}
function head(name, title, kind) {
  const sorted = order.name === name ? (order.down ? "descending" : "ascending") : "none";
  const button = h("button", { type: "button", class: "sort", "data-sort": name, tabindex: -1, onclick: () => sortBy(name) }, title);
  return h("th", { scope: "col", class: kind, "aria-sort": sorted }, button);
}
function cellText(row, column) {
  const cell = row.cells[column.name];
  if (!cell) return [h("span", { class: "refused" }, "-")];
  const digits = digitsOf(column);
  const kind = cell.rank === 1 ? "best" : cell.rank === 2 ? "second" : cell.value === null ? "refused" : null;
  const small = cell.low !== null && cell.low !== undefined ? `${fixed(cell.low, digits)}\u2013${fixed(cell.high, digits)}` : null;
  const partial = cell.value !== null && cell.why && row.source === "measured" ? `${cell.n} of ${cell.n_expected}` : null;
  return [h("span", { class: kind }, cell.text), small && h("small", {}, small), partial && h("small", {}, partial)];
}
function drawTable() {
  const groups = [];
  for (const column of data.columns) {
    const name = column.kind === "average" ? "Averages" : column.group || "Benchmarks";
    if (groups.length && groups[groups.length - 1][0] === name) groups[groups.length - 1][1] += 1;
    else groups.push([name, 1]);
  }
  const last = ["arch", "LLM", "frozen", "pixels", "tokens", "complete", "MLLM"];
  const body = sortedRows().map((row) => {
    const name = h("th", { scope: "row", class: "who" }, swatch(row), row.name);
    const cells = data.columns.map((column) =>
      h("td", { class: column.kind === "average" ? "average" : null },
        h("button", { type: "button", class: "cell", tabindex: -1, "aria-describedby": "tip", onclick: (event) => show(event.currentTarget, row, column, true),
          onfocus: (event) => show(event.currentTarget, row, column), onblur: hide,
          onmouseenter: (event) => show(event.currentTarget, row, column), onmouseleave: hide }, cellText(row, column))));
    const words = [row.arch, row.llm, row.frozen === null ? "" : row.frozen ? "yes" : "no", row.pixels, row.tokens, row.complete];
    const meta = words.map((word) => h("td", { class: "text" }, String(word ?? "")));
    const weights = row.source === "printed" ? h("span", { class: "tag" }, "printed") : h("span", { class: "digest" }, row.digest.slice(0, 8));
    return h("tr", { class: row.source === "printed" ? "printed" : null }, name, cells, meta, h("td", { class: "text" }, weights));
  });
  const top = h("tr", { class: "group" }, h("td", { class: "who" }), groups.map(([name, span]) => h("th", { colspan: span, scope: "colgroup" }, name)),
    h("th", { colspan: last.length, scope: "colgroup" }, "What it is"));
  const heads = h("tr", {}, head("encoder", "encoder", "who"),
    data.columns.map((column) => head(column.name, column.title, column.kind === "average" ? "average" : null)),
    last.map((name) => h("th", { scope: "col", class: "text" }, h("span", { class: "cell" }, name))));
  const table = h("table", { role: "grid", "aria-labelledby": "h-table" }, h("thead", {}, top, heads), h("tbody", {}, body));
  table.addEventListener("keydown", move);
  $("table-box").replaceChildren(table);
  enter(table.querySelector(".sort"));
}
// One stop of the Tab key for the whole table; arrows move inside it.
function enter(button) {
  for (const each of document.querySelectorAll("#table-box [tabindex='0']")) each.tabIndex = -1;
  button.tabIndex = 0;
}
function move(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e6], End: [0, 1e6] }[event.key];
  if (!step || !event.target.matches("button")) return;
  const lines = [...event.currentTarget.querySelectorAll("tr")].map((line) => {
    const buttons = [...line.querySelectorAll("button")];
    return line.querySelector("th.who button") ? buttons : [null, ...buttons];
  }).filter((line) => line.some((button) => button));
  const y = lines.findIndex((line) => line.includes(event.target));
  const x = lines[y].indexOf(event.target);
  const line = lines[Math.min(Math.max(y + step[0], 0), lines.length - 1)];
  const target = line[Math.min(Math.max(x + step[1], line[0] ? 0 : 1), line.length - 1)];
  event.preventDefault();
  enter(target);
  target.focus();
  target.scrollIntoView({ block: "nearest", inline: "center" });
}

// --- what stands behind a number --------------------------------------------------------------------------------------------

let pinned = null;
function show(button, row, column, pin = false) {
  if (pin && pinned === button) { pinned = null; return hide(); }
  pinned = pin ? button : pinned === button ? button : null;
  const cell = row.cells[column.name] || { value: null, why: "not a column of this row" };
  const digits = digitsOf(column);
  const facts = [];
  const add = (name, value) => value !== null && value !== undefined && value !== "" && facts.push(h("dt", {}, name), h("dd", { dir: "auto" }, String(value)));
  add("value", cell.value === null ? "none" : `${fixed(cell.value, 2)} ${column.unit || ""}`);
  if (cell.low !== null && cell.low !== undefined) add("95 % interval", `${fixed(cell.low, digits)} to ${fixed(cell.high, digits)}`);
  if (cell.stderr !== null && cell.stderr !== undefined) add("standard error", fixed(cell.stderr, 2));
  if (cell.n !== null && cell.n !== undefined) add("n", `${count(cell.n)} of ${cell.n_expected === null ? "unknown" : count(cell.n_expected)}`);
  add("left out", cell.left_out || null);
  add(cell.value === null ? "why none" : "note", cell.why);
  add("metric", column.metric);
  add("task", column.task && `${column.task}, split ${column.split}`);
  add("prompt of its first sample", row.source === "measured" && column.task ? data.prompts[column.task] : null);
  add("MLLM", row.digest || (row.source === "printed" ? "printed in the paper, not measured here" : null));
  $("tip").replaceChildren(h("strong", {}, `${row.name}: ${column.title}`), h("dl", {}, facts));
  $("tip").hidden = false;
  const at = button.getBoundingClientRect(), size = $("tip").getBoundingClientRect();
  const below = at.bottom + 6 + size.height < innerHeight;
  $("tip").style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8))}px`;
  $("tip").style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
}
function hide() { if (!pinned) $("tip").hidden = true; }
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { pinned = null; hide(); } });
document.addEventListener("click", (event) => { if (pinned && !event.target.closest(".cell, #tip")) { pinned = null; hide(); } });
// A cell that the keyboard reaches may be scrolled into view by that: its tip stays.
addEventListener("scroll", () => { if (!pinned && !document.activeElement.matches(".cell")) hide(); }, { passive: true });

// --- differences ------------------------------------------------------------------------------------------------------------

function strip(line, reach) {
  const svg = s("svg", { viewBox: "0 0 200 20", preserveAspectRatio: "none", "aria-hidden": "true" });
  const at = (x) => 100 + (96 * x * line.unit) / reach;
  svg.append(s("line", { class: "zero", x1: 100, x2: 100, y1: 0, y2: 20, "vector-effect": "non-scaling-stroke" }));
  const kind = line.word === "better" ? "win" : line.word === "worse" ? "lose" : "grey";
  if (line.low !== null) svg.append(s("rect", { class: kind, x: at(line.low), y: 8.5, width: Math.max(0.5, at(line.high) - at(line.low)), height: 3, stroke: "none" }));
  svg.append(s("rect", { class: kind, x: at(line.difference) - 1, y: 4, width: 2, height: 12, stroke: "none" }));
  return svg;
}
function drawPair() {
  const pair = data.compared[Number($("pair").value) || 0];
  const [a, b] = [measured[pair.a].name, measured[pair.b].name];
  const told = pair.lines.filter((line) => line.difference !== null);
  const reach = Math.max(0.5, ...told.flatMap((line) => [line.low, line.high, line.difference].map((x) => Math.abs((x ?? 0) * line.unit)))) * 1.03;
  const believable = told.some((line) => line.believable !== null);
  const body = pair.lines.map((line) => {
    const digits = line.unit < 0.5 ? 0 : 1;
    const kind = line.average ? "whole" : null;
    if (line.difference === null) {
      return h("tr", { class: `${kind || ""} unsure` }, h("th", { scope: "row" }, line.title), h("td", { "data-name": a }, fixed(line.a, digits)),
        h("td", { "data-name": b }, fixed(line.b, digits)), h("td", { class: "reason", colspan: believable ? 6 : 5 }, line.reason || "not compared"));
    }
    const unsure = line.word !== "better" && line.word !== "worse";
    const word = `${line.word}${line.reason ? ` (${line.reason})` : ""}`;
    const bounds = line.low === null ? "" : ` [${signed(line.low, digits)}, ${signed(line.high, digits)}]`;
    return h("tr", { class: [kind, unsure ? "unsure" : null].filter(Boolean).join(" ") || null },
      h("th", { scope: "row" }, line.title),
      h("td", { "data-name": a }, fixed(line.a, digits)), h("td", { "data-name": b }, fixed(line.b, digits)),
      h("td", { "data-name": "difference" }, `${signed(line.difference, digits)}${bounds}`),
      believable ? h("td", { "data-name": "believable from" }, fixed(line.believable, digits)) : null,
      h("td", { "data-name": "n" }, line.n === null ? "" : count(line.n)),
      h("td", { "data-name": "p" }, line.p_adjusted < 0.0001 ? "<0.0001" : line.p_adjusted.toFixed(line.p_adjusted < 0.001 ? 4 : 3)),
      h("td", { class: "strip" }, strip(line, reach)), h("td", { class: unsure ? "word" : `word ${line.word}` }, word));
  });
  const scale = `from \u2212${fixed(reach, 0)} to +${fixed(reach, 0)}, 0 in the middle`;
  const heads = ["benchmark", a, b, "difference [95 %]", ...(believable ? ["believable from"] : []), "n", "p", scale, `${a} is`];
  const head = heads.map((title) => h("th", { scope: "col", class: title === scale ? "scale" : null }, title));
  const table = h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
  const box = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${a} against ${b}` }, table);
  const differs = pair.differs.length
    ? [h("h3", {}, "Besides the encoder, these differ"), h("ul", { class: "notes" }, pair.differs.map((text) => h("li", {}, text)))]
    : [h("p", { class: "muted" }, pair.alone)];
  $("pair-box").replaceChildren(h("p", { class: "muted" }, pair.how.join(" ")), box, ...differs);
}

// --- samples ----------------------------------------------------------------------------------------------------------------

const parsed = new Map();
let limit = CHUNK;
function current() {
  const i = $("benchmark").selectedIndex;
  if (!parsed.has(i)) parsed.set(i, json(`s${i}`));
  return parsed.get(i);
}
const fill = (select, pairs) => select.replaceChildren(...pairs.map(([value, title]) => h("option", { value }, title)));
function chooseBenchmark() {
  const all = current();
  fill($("of"), [["", all.rows.length > 1 ? "every encoder" : "the encoder"], ...all.rows.map((row, i) => [i, measured[row].name])]);
  const kinds = [...new Set(all.items.map((item) => item.category).filter(Boolean))].sort();
  fill($("category"), [["", "all"], ...kinds.map((kind) => [kind, kind])]);
  $("category-label").hidden = !kinds.length;
  $("show").querySelector("[value=differ]").disabled = all.rows.length < 2;
  if ($("show").value === "differ" && all.rows.length < 2) $("show").value = "all";
  const many = all.rows.length > 1;
  const parts = many
    ? [["all right", "all encoders right"], ["none right", "none right"], ["they differ", "they disagree"], ["not answered by all", "not answered by all"]]
    : [["all right", "right"], ["none right", "wrong"]];
  const told = parts.filter(([name]) => all.counts[name] || name !== "not answered by all").map(([name, words]) => `${words}: ${count(all.counts[name])}`);
  const mark = all.right_from === 1 ? "a CIDEr of 100" : "half of a question's points";
  const drawn = all.items.length < all.total ? ` ${count(all.items.length)} of them are here, ${many ? "half of them, as far as there are, from where the encoders disagree; " : ""}the rest drawn from all others: no estimate of a score.` : "";
  $("counts").textContent = `All ${count(all.total)} samples: ${told.join(", ")} (right means ${mark} or more).${drawn} ${all.said.join(" ")}`;
  limit = CHUNK;
  drawSamples();
}
function matching() {
  const all = current(), want = $("show").value, of = $("of").value, kind = $("category").value;
  const words = $("search").value.trim().toLocaleLowerCase();
  return all.items.filter((item) => {
    const right = item.answers.map((answer) => answer && answer.score >= all.right_from);
    const given = right.filter((each) => each !== null);
    if (want === "differ" && !(given.includes(true) && given.includes(false))) return false;
    if (want === "right" || want === "wrong") {
      const each = of === "" ? given : [right[of]];
      if (!each.length || !each.every((is) => is === (want === "right"))) return false;
    }
    if (kind && item.category !== kind) return false;
    if (!words) return true;
    const texts = [item.question, item.reference, String(item.id), ...item.answers.map((answer) => (answer ? answer.text : ""))];
    return texts.some((text) => text.toLocaleLowerCase().includes(words));
  });
}
function said(text, kind) {
  if (text === "") return h("p", { class: "empty" }, "(empty)");
  const long = text.length > 700;
  const attributes = { class: `said ${kind || ""} ${long ? "long" : ""}`.trim(), dir: "auto" };
  if (long) Object.assign(attributes, { tabindex: 0, role: "region", "aria-label": `text of ${count(text.length)} characters` });
  return h("p", attributes, text);
}
function enlarge(source, title) {
  $("large-picture").src = source;
  $("large-picture").alt = title;
  $("large").showModal();
}
function card(all, item) {
  let picture = h("div", { class: "nopicture" }, item.why || "no picture");
  if (item.picture !== undefined) {
    const source = `data:image/${all.pictures[item.picture]}`;
    const title = `picture of sample ${item.id}`;
    picture = h("button", { type: "button", class: "picture", "aria-label": `enlarge the ${title}`, onclick: () => enlarge(source, title) },
      h("img", { src: source, alt: title, decoding: "async", loading: "lazy" }));
  }
  const answers = item.answers.map((answer, i) => {
    const row = measured[all.rows[i]];
    const name = h("span", { class: "name" }, swatch(row), row.name);
    if (!answer) return h("li", {}, name, h("p", { class: "empty" }, "not answered"), h("span", {}));
    const right = answer.score >= all.right_from;
    const size = answer.text.length > 700 ? `${count(answer.text.length)} characters, ` : "";
    const score = answer.score === 1 || answer.score === 0 ? "" : ` ${Number(answer.score.toFixed(2))}`;
    return h("li", {}, name, said(answer.text), h("span", { class: `verdict ${right ? "better" : "worse"}` }, `${size}${right ? "\u2713 right" : "\u2717 wrong"}${score}`));
  });
  return h("article", { class: "sample", id: `sample-${item.id}`, tabindex: -1, "aria-label": `sample ${item.id}` },
    h("div", {}, picture),
    h("div", {},
      h("header", {}, h("span", {}, `sample ${item.id}`), item.category ? h("span", { dir: "auto" }, item.category) : null,
        h("a", { href: `#sample=${all.task}/${item.id}`, "aria-label": `link to sample ${item.id}` }, "link")),
      said(item.question, "question"),
      h("div", { class: "reference" }, h("span", {}, "reference"), said(item.reference)),
      h("ul", { class: "answers" }, answers)));
}
function drawSamples() {
  const all = current(), found = matching();
  $("shown").textContent = found.length === 0 ? "No sample is like that." : `${count(found.length)} sample${found.length === 1 ? "" : "s"}`;
  $("list").replaceChildren(...found.slice(0, limit).map((item) => card(all, item)));
  $("more").hidden = found.length <= limit;
  $("more").textContent = `Show more (${count(found.length - limit)} left)`;
}
function openLink() {
  const link = /^#sample=([^/]+)\/(\d+)$/.exec(location.hash);
  if (!link) return;
  const [task, doc] = [decodeURIComponent(link[1]), Number(link[2])];
  const i = data.benchmarks.findIndex((each) => each.task === task);
  if (i < 0) { $("shown").textContent = `The link names ${task}, which is no benchmark of this report.`; return; }
  $("benchmark").selectedIndex = i;
  $("show").value = "all";
  $("search").value = "";
  chooseBenchmark();
  const place = matching().findIndex((item) => item.id === doc);
  if (place < 0) { $("shown").textContent = `Sample ${doc} of ${task} is not among those that this report shows.`; $("samples").scrollIntoView(); return; }
  limit = Math.max(CHUNK, place + 1);
  drawSamples();
  const target = $(`sample-${doc}`);
  target.classList.add("linked");
  target.scrollIntoView({ block: "center" });
  target.focus({ preventScroll: true });
}

// --- what was run -----------------------------------------------------------------------------------------------------------

const pretty = (value) => h("pre", { tabindex: 0 }, JSON.stringify(value, null, 1));
const listed = (pairs) => h("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
function drawRuns() {
  const others = measured.slice(1).map((row) =>
    h("li", {}, row.differs.length ? `${row.name} against ${measured[0].name}: ${row.differs.join("; ")}.` : `${row.name} against ${measured[0].name}: ${row.alone}`));
  const head = measured.length > 1 ? [h("h3", {}, "What differs between the rows besides the encoder"), h("ul", { class: "notes" }, others)] : [];
  const boxes = measured.map((row, i) => {
    const told = row.provenance, behind = data.behind[i];
    const facts = listed([
      ["encoder", `${row.encoder}${told.encoder_key && told.encoder_key !== row.encoder ? ` (key ${told.encoder_key})` : ""}`],
      ["architecture", row.arch], ["MLLM", row.digest], ["weights", told.weights_digest], ["encoder's weights", told.encoder_digest],
      ["language model", row.llm], ["its weights", told.llm_digest], ["stage", told.stage],
      ["encoder frozen", row.frozen === null ? "not recorded" : row.frozen ? "yes" : "no"], ["untrained", told.untrained ? "yes: built from a seed" : null],
      ["resolution", row.pixels && `${row.pixels} pixels a side`], ["visual tokens", row.tokens], ["training data", told.data_digest],
      ["versions", Object.entries(told.versions || {}).map((pair) => pair.join(" ")).join(", ")], ["commit", told.git_commit],
    ]);
    const commands = [h("h3", {}, "Commands that reproduce it"), h("pre", { tabindex: 0 }, behind.commands.join("\n\n"))];
    const runs = behind.runs.map((run) => h("details", {}, h("summary", {}, `${run.what}: ${run.name}`),
      h("h3", {}, "Recipe"), pretty(run.recipe), h("h3", {}, "Data ledger"), Object.keys(run.ledger).length ? pretty(run.ledger) : h("p", { class: "muted" }, "no ledger.json in the run folder")));
    const none = behind.runs.length ? null : h("p", { class: "muted" }, "Its run folder is not at hand: no data ledger, no curves, and the commands are those of the evaluation.");
    return h("details", { open: measured.length === 1 }, h("summary", {}, swatch(row), row.name), facts, commands, none, runs,
      h("details", {}, h("summary", {}, "Everything its export records"), pretty(told)));
  });
  $("run-box").replaceChildren(...head, ...boxes);
}
function drawTraining() {
  const seen = new Set(), parts = [];
  for (const behind of data.behind) {
    for (const { run, lines } of behind.spoken.filter((each) => !seen.has(each.run))) {
      seen.add(run);
      const body = lines.map((line) => h("tr", {}, h("td", { class: "text" }, line.step === null ? "" : count(line.step)),
        h("td", { class: "text" }, line.name), h("td", { class: "text", dir: "auto" }, line.said), h("td", { class: "text", dir: "auto" }, line.true)));
      const heads = ["step", "picture", "said", "true caption"].map((title) => h("th", { scope: "col", class: "text" }, h("span", { class: "cell" }, title)));
      parts.push(h("h3", {}, `What the encoder said: ${run}`), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `captions of ${run}` },
        h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body))));
    }
    for (const drawing of behind.drawings.filter((each) => !seen.has(each.name))) {
      seen.add(drawing.name);
      parts.push(h("h3", {}, drawing.name), h("img", { class: "drawing", src: `data:image/png;base64,${drawing.png}`, alt: drawing.name, loading: "lazy" }));
    }
  }
  if (!parts.length && !document.querySelector("#training figure")) parts.push(h("p", { class: "muted" }, "No run folder of these rows is at hand: no curves, no spoken captions. --runs DIR names where they lie."));
  $("training-box").replaceChildren(...parts);
}

// --- begin ------------------------------------------------------------------------------------------------------------------

$("paper-label").hidden = data.rows.length === measured.length;
$("paper").addEventListener("change", drawTable);
$("notes").replaceChildren(...data.notes.map((note) => h("li", {}, note)));
drawTable();
if (data.compared.length) {
  fill($("pair"), data.compared.map((pair, i) => [i, `${measured[pair.a].name} against ${measured[pair.b].name}`]));
  $("pair").addEventListener("change", drawPair);
  drawPair();
} else {
  $("pair-tools").hidden = true;
  $("pair-box").replaceChildren(h("p", { class: "muted" }, "One encoder alone: there is nothing to compare it with."));
}
fill($("benchmark"), data.benchmarks.map((each) => [each.task, each.title]));
$("benchmark").addEventListener("change", chooseBenchmark);
for (const id of ["show", "of", "category"]) $(id).addEventListener("change", () => { limit = CHUNK; drawSamples(); });
$("search").addEventListener("input", () => { limit = CHUNK; drawSamples(); });
$("more").addEventListener("click", () => { limit += CHUNK; drawSamples(); });
chooseBenchmark();
drawRuns();
drawTraining();
addEventListener("hashchange", openLink);
openLink();
