// Page of a map of images: colours by a column, thumbnails under the pointer, selection by lasso, saved as CSV.

const data = JSON.parse(document.getElementById("map-data").textContent);
const byId = (name) => document.getElementById(name);
const plane = byId("plane"), tip = byId("tip"), total = data.rows.length;
const sheets = data.sheets.map(() => null);
let column = null, hidden = new Set(), selected = new Set(), lasso = null, moving = false, drag = null;
let view = { zoom: 1, x: 0, y: 0 }; // the place (x, y) of the upper left corner, in 0 to 1 of the map
let drawing = 0;

const side = () => Math.min(plane.clientWidth, plane.clientHeight) - 20;
const toScreen = (x, y) => [
  plane.clientWidth / 2 + ((x - 0.5) * view.zoom + view.x) * side(),
  plane.clientHeight / 2 + ((y - 0.5) * view.zoom + view.y) * side(),
];
const pointOf = (at) => toScreen(data.points[2 * at] / 65535, data.points[2 * at + 1] / 65535);
const isShown = (at) => !column || !hidden.has(data.columns[column].groups[at]);

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

function paint() {
  drawing = 0;
  const ratio = window.devicePixelRatio || 1, context = plane.getContext("2d");
  plane.width = plane.clientWidth * ratio;
  plane.height = plane.clientHeight * ratio;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const radius = Math.min(Math.max((120 / Math.sqrt(total)) * Math.sqrt(view.zoom), 1.8), 7);
  const groups = column ? data.columns[column].groups : null;
  for (const marked of [false, true]) {
    for (let at = 0; at < total; at++) {
      if (selected.has(at) !== marked || !isShown(at)) continue;
      const [x, y] = pointOf(at);
      context.globalAlpha = selected.size && !marked ? 0.25 : 0.8;
      context.fillStyle = groups ? data.palette[groups[at] % data.palette.length] : data.palette[0];
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.fill();
    }
  }
  context.globalAlpha = 1;
  const ink = getComputedStyle(document.body).color;
  if (data.star) {
    const [x, y] = toScreen(...data.star);
    context.beginPath();
    for (let k = 0; k < 10; k++) {
      const length = k % 2 ? 5 : 12, turn = (k * Math.PI) / 5 - Math.PI / 2;
      context.lineTo(x + length * Math.cos(turn), y + length * Math.sin(turn));
    }
    context.closePath();
    context.fillStyle = "#facc15";
    context.fill();
    context.strokeStyle = "#000000";
    context.stroke();
  }
  if (lasso) {
    context.beginPath();
    for (const [x, y] of lasso) context.lineTo(x, y);
    context.closePath();
    context.strokeStyle = ink;
    context.setLineDash([5, 4]);
    context.stroke();
    context.setLineDash([]);
  }
}
const draw = () => { drawing = drawing || requestAnimationFrame(paint); };

function chooseColumn(name) {
  column = name || null;
  hidden = new Set();
  const counts = {};
  if (column) for (const group of data.columns[column].groups) counts[group] = (counts[group] || 0) + 1;
  byId("legend").replaceChildren(...(column ? data.columns[column].names : []).map((text, group) => {
    const item = document.createElement("li"), label = document.createElement("label");
    const box = document.createElement("input"), dot = document.createElement("i");
    Object.assign(box, { type: "checkbox", checked: true });
    dot.style.background = data.palette[group % data.palette.length];
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(group);
      else hidden.add(group);
      draw();
    });
    label.append(box, dot, `${text} (${(counts[group] || 0).toLocaleString("en-US")})`);
    item.append(label);
    return item;
  }));
  draw();
}

/** Number of the shown image that is nearest to a place of the canvas, within 12 px; -1 for none. */
function nearest(x, y) {
  let best = -1, distance = 144;
  for (let at = 0; at < total; at++) {
    if (!isShown(at)) continue;
    const [px, py] = pointOf(at), away = (px - x) ** 2 + (py - y) ** 2;
    if (away < distance) [best, distance] = [at, away];
  }
  return best;
}

function showTip(x, y) {
  const at = nearest(x, y);
  tip.hidden = at < 0;
  if (at < 0) return;
  const canvas = document.createElement("canvas"), lines = [`row ${data.rows[at]}`];
  if (data.manifest) lines.push(data.manifest.image[at]);
  for (const [name, { names, groups }] of Object.entries(data.columns)) lines.push(`${name}: ${names[groups[at]]}`);
  thumbnail(canvas, at, Math.max(data.side, 96));
  tip.replaceChildren(canvas, ...lines.map((text) => {
    const line = document.createElement("div");
    line.textContent = text;
    return line;
  }));
  tip.dataset.row = data.rows[at];
  tip.style.left = `${Math.min(x + 14, plane.clientWidth - 150)}px`;
  tip.style.top = `${Math.min(y + 14, plane.clientHeight - 190)}px`;
}

/** Whether a place lies in a polygon, by the number of its edges to the right (even-odd rule). */
function inside(x, y, polygon) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i], [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

function select(numbers) {
  selected = new Set(numbers);
  byId("save").disabled = byId("clear").disabled = !selected.size;
  byId("chosen").textContent = `${selected.size.toLocaleString("en-US")} of ${total.toLocaleString("en-US")} images selected.`;
  byId("grid").replaceChildren(...[...selected].slice(0, 60).map((at) => {
    const canvas = document.createElement("canvas");
    thumbnail(canvas, at, Math.min(data.side, 64));
    canvas.title = `row ${data.rows[at]}`;
    return canvas;
  }));
  draw();
}

/** The selection as CSV: a manifest, or the column `row`. */
function toCsv() {
  const table = data.manifest || { row: data.rows }, names = Object.keys(table);
  const cell = (value) => {
    const text = value === null ? "" : value === true ? "true" : value === false ? "false" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [...selected].sort((a, b) => a - b).map((at) => names.map((name) => cell(table[name][at])).join(","));
  return `${[names.map(cell).join(","), ...lines].join("\n")}\n`;
}

byId("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
  link.download = data.manifest ? "selection.csv" : "selection_rows.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
byId("clear").addEventListener("click", () => select([]));
byId("fit").addEventListener("click", () => {
  view = { zoom: 1, x: 0, y: 0 };
  draw();
});
byId("mode").addEventListener("click", (event) => {
  moving = !moving;
  event.target.setAttribute("aria-pressed", moving);
  plane.parentElement.classList.toggle("map-move", moving);
});
byId("column").addEventListener("change", (event) => chooseColumn(event.target.value));

const at = (event) => {
  const box = plane.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
plane.addEventListener("pointerdown", (event) => {
  plane.setPointerCapture(event.pointerId);
  tip.hidden = true;
  drag = at(event);
  lasso = moving ? null : [drag];
});
plane.addEventListener("pointermove", (event) => {
  const place = at(event);
  if (!drag) return showTip(...place);
  if (moving) {
    view.x += (place[0] - drag[0]) / side();
    view.y += (place[1] - drag[1]) / side();
    drag = place;
  } else {
    lasso.push(place);
  }
  draw();
});
for (const name of ["pointerup", "pointercancel"]) {
  plane.addEventListener(name, () => {
    const polygon = lasso;
    drag = lasso = null;
    if (name === "pointerup" && polygon && polygon.length > 2) {
      select(data.rows.map((_, number) => number).filter((number) => isShown(number) && inside(...pointOf(number), polygon)));
    }
    draw();
  });
}
plane.addEventListener("pointerleave", () => { tip.hidden = true; });
plane.addEventListener("wheel", (event) => {
  event.preventDefault();
  const [x, y] = at(event), factor = Math.exp(-event.deltaY * 0.0016), zoom = Math.min(Math.max(view.zoom * factor, 1), 60);
  const ratio = zoom / view.zoom, middle = [plane.clientWidth / 2, plane.clientHeight / 2];
  view.x = (x - middle[0]) / side() - ((x - middle[0]) / side() - view.x) * ratio;
  view.y = (y - middle[1]) / side() - ((y - middle[1]) / side() - view.y) * ratio;
  view.zoom = zoom;
  draw();
}, { passive: false });
plane.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [0.05, 0], ArrowRight: [-0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] };
  if (steps[event.key]) {
    view.x += steps[event.key][0];
    view.y += steps[event.key][1];
  } else if (event.key === "+" || event.key === "-") {
    view.zoom = Math.min(Math.max(view.zoom * (event.key === "+" ? 1.25 : 0.8), 1), 60);
  } else return;
  event.preventDefault();
  draw();
});
new ResizeObserver(draw).observe(plane);
if (data.chosen) byId("column").value = data.chosen;
chooseColumn(byId("column").value);
document.body.dataset.ready = "true";
