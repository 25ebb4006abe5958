// Page of a map of images: colours by a column, thumbnails under the pointer, a selection that is saved as CSV.

const data = JSON.parse(document.getElementById("map-data").textContent);
const byId = (name) => document.getElementById(name);
const tip = byId("tip"), total = data.rows.length, sheets = data.sheets.map(() => null);
let selected = [];

/** Draw the thumbnail of an image into a canvas of `size` px. */
function thumbnail(canvas, at, size) {
  const each = data.sheet * data.sheet, number = Math.floor(at / each), place = at % each;
  canvas.width = canvas.height = size;
  const paint = () => canvas.getContext("2d").drawImage(sheets[number], (place % data.sheet) * data.side,
    Math.floor(place / data.sheet) * data.side, data.side, data.side, 0, 0, size, size);
  if (!sheets[number]) {
    sheets[number] = new Image();
    sheets[number].src = data.sheets[number];
  }
  if (sheets[number].complete) paint();
  else sheets[number].addEventListener("load", paint, { once: true });
}

/** The row of a point, its path if the page has it, and its values. */
function describe(at) {
  const lines = [`row ${data.rows[at]}`];
  if (data.manifest) lines.push(data.manifest.image[at]);
  for (const [name, { names, groups }] of Object.entries(data.columns)) lines.push(`${name}: ${names[groups[at]]}`);
  return lines;
}

function showTip(at, x, y) {
  tip.hidden = at < 0;
  if (at < 0) return;
  const canvas = document.createElement("canvas"), lines = describe(at);
  thumbnail(canvas, at, Math.max(data.side, 96));
  tip.replaceChildren(canvas, ...lines.map((text) => {
    const line = document.createElement("div");
    line.textContent = text;
    return line;
  }));
  tip.dataset.row = data.rows[at];
  tip.style.left = `${Math.max(Math.min(x + 14, plane.canvas.clientWidth - 150), 0)}px`;
  tip.style.top = `${Math.max(Math.min(y + 14, plane.canvas.clientHeight - 190), 0)}px`;
}

function showSelection(numbers) {
  selected = numbers;
  byId("save").disabled = byId("clear").disabled = !selected.length;
  const values = selected.length === 1 ? ` ${describe(selected[0]).join("; ")}` : "";
  byId("chosen").textContent = `${selected.length.toLocaleString("en-US")} of ${total.toLocaleString("en-US")} images selected.${values}`;
  byId("grid").replaceChildren(...selected.slice(0, 60).map((at) => {
    const canvas = document.createElement("canvas");
    thumbnail(canvas, at, Math.min(data.side, 64));
    canvas.title = `row ${data.rows[at]}`;
    return canvas;
  }));
}

/** The selection as CSV: a manifest, or the column `row`. */
function toCsv() {
  const table = data.manifest || { row: data.rows }, names = Object.keys(table);
  const cell = (value) => {
    const text = value === null ? "" : value === true ? "true" : value === false ? "false" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = selected.map((at) => names.map((name) => cell(table[name][at])).join(","));
  return `${[names.map(cell).join(","), ...lines].join("\n")}\n`;
}

const plane = new MapPlane(byId("plane"), showTip, showSelection);
const chooseColumn = (name) => {
  const { names, groups } = name ? data.columns[name] : { names: [], groups: new Uint8Array(total) };
  plane.setGroups(groups);
  listGroups(byId("legend"), plane, names, groups);
};

byId("save").addEventListener("click", () => saveText(toCsv(), data.manifest ? "selection.csv" : "selection_rows.csv"));
byId("clear").addEventListener("click", () => plane.clear());
byId("all").addEventListener("click", () => plane.selectVisible());
byId("fit").addEventListener("click", () => plane.fit());
byId("mode").addEventListener("click", (event) => {
  plane.moving = !plane.moving;
  event.target.setAttribute("aria-pressed", plane.moving);
  plane.canvas.parentElement.classList.toggle("map-move", plane.moving);
});
byId("column").addEventListener("change", (event) => chooseColumn(event.target.value));
plane.setPoints(Float32Array.from(data.points, (value) => value / 65535));
plane.setStar(data.star);
if (data.chosen) byId("column").value = data.chosen;
chooseColumn(byId("column").value);
document.body.dataset.ready = "true";
