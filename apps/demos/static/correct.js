// Correction of the outlined regions by brush, eraser, fill and similar patches, and the decision of the reviewer, with `demo --save`.

const SET = 1, CLEARED = 2, MAX_UNDO = 30; // values of an edited pixel, as in apps/demos/corrections.py
const RING = "#ffffff";
let tool = null;

/** Levels with the edits: kept regions as they are, others below the threshold, set pixels on top, cleared ones at 0. */
function withEdits(picture, map, level) {
  const levels = withoutRegions(picture.levels, map, level).slice();
  for (let at = 0; at < levels.length; at++) {
    if (picture.edits[at] === SET) levels[at] = picture.top;
    else if (picture.edits[at] === CLEARED) levels[at] = 0;
  }
  return levels;
}

/** Levels in which the regions that are left out lie below the threshold. */
function withoutRegions(levels, map, level) {
  if (!map.removed.length) return levels;
  const kept = levels.slice();
  for (let run = 0; run < map.removed.length; run += 2) kept.fill(level - 1, map.removed[run], map.removed[run + 1]);
  return kept;
}

/** The edits as runs [start, end, value, ...] of pixels of the map. */
function editRuns(picture) {
  const runs = [], edits = picture.edits;
  for (let at = 0; edits && at < edits.length;) {
    const start = at, value = edits[at];
    while (++at < edits.length && edits[at] === value);
    if (value) runs.push(start, at, value);
  }
  return runs;
}

/** Set or clear a disc around a point of the map. */
function stamp(picture, x, y, radius, value) {
  const { width, height, edits } = picture;
  for (let row = Math.max(0, Math.ceil(y - radius)); row <= Math.min(height - 1, y + radius); row++) {
    const half = Math.sqrt(radius * radius - (row - y) ** 2);
    const left = Math.max(0, Math.ceil(x - half)), right = Math.min(width - 1, Math.floor(x + half));
    if (left <= right) edits.fill(value, row * width + left, row * width + right + 1);
  }
}

/** Set the pixels that are connected with a point outside all regions, or clear the region at the point. */
function flood(picture, x, y) {
  const { width, height, edits } = picture, { levels, level } = picture.drawn;
  const inside = levels[y * width + x] >= level, waiting = [y * width + x], seen = new Uint8Array(width * height);
  seen[waiting[0]] = 1;
  while (waiting.length) {
    const at = waiting.pop(), column = at % width;
    edits[at] = inside ? CLEARED : SET;
    const around = [at - width, at + width, column ? at - 1 : -1, column < width - 1 ? at + 1 : -1];
    for (const next of around) {
      if (next < 0 || next >= seen.length || seen[next] || levels[next] >= level !== inside) continue;
      seen[next] = 1;
      waiting.push(next);
    }
  }
}

/** A place in the picture as a place in the map: the centre of the pixel (0, 0) is at 0. */
function inMap(picture, point) {
  return [0, 1].map((axis) => (point[axis] * [picture.width, picture.height][axis]) / picture.size[axis] - 0.5);
}

let drawingEdits = 0;
function showEdits() {
  if (drawingEdits) return;
  drawingEdits = requestAnimationFrame(() => {
    drawingEdits = 0;
    outline();
  });
}

class Brush {
  constructor(value) {
    this.value = value;
    this.last = null;
  }

  radius() {
    return Number(get("#brush-size").value) / 2;
  }

  start(point) {
    if (!current || !current.levels) return;
    remember(current);
    this.last = null;
    this.move(point);
  }

  move(point) {
    const picture = current;
    if (!picture || !picture.edits) return;
    const [x, y] = inMap(picture, point), radius = Math.max(0.5, (this.radius() / viewer.scale()) * (picture.width / picture.size[0]));
    const [fromX, fromY] = this.last || [x, y], steps = Math.ceil(Math.hypot(x - fromX, y - fromY) / Math.max(radius / 2, 0.5)) || 1;
    for (let step = 1; step <= steps; step++) {
      stamp(picture, fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps, radius, this.value);
    }
    this.last = [x, y];
    showEdits();
  }

  end() {
    this.last = null;
    showEdits();
  }

  cancel() {
    this.last = null;
    undo();
  }

  /** Draw the ring of the brush at a place of the stage. */
  paint(context, [x, y]) {
    for (const [colour, width] of [["#000000", 3], [RING, 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.arc(x, y, this.radius(), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

class Fill {
  start(point) {
    const picture = current;
    if (!picture || !picture.drawn) return;
    const [x, y] = inMap(picture, point).map(Math.round);
    if (x < 0 || y < 0 || x >= picture.width || y >= picture.height) return;
    remember(picture);
    flood(picture, x, y);
    outline();
  }

  move() {}

  end() {}

  cancel() {}

  paint(context, place) {
    paintCursor(context, place);
  }
}

/** Keep the edits for `undo`, and begin new ones if there are none. */
function remember(picture) {
  grown = null;
  picture.undo = [...(picture.undo || []).slice(1 - MAX_UNDO), picture.edits ? picture.edits.slice() : null];
  picture.edits = picture.edits || new Uint8Array(picture.width * picture.height);
}

function undo() {
  const picture = current;
  if (!picture || !picture.undo || !picture.undo.length) return;
  grown = null;
  picture.edits = picture.undo.pop();
  outline();
}

const TOOLS = { brush: new Brush(SET), eraser: new Brush(CLEARED), fill: new Fill(), grow: new Grow(SET), shrink: new Grow(CLEARED) };

function chooseTool(name) {
  tool = tool === name ? null : name;
  for (const button of all("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  viewer.useTool(tool ? TOOLS[tool] : null);
}

/** Enable the tools and decisions that the picture allows; called after every outline and when a picture is cleared. */
function showTools() {
  if (!get(".dm-correct")) return;
  const ready = Boolean(current && current.levels), edited = ready && editRuns(current).length > 0;
  if (!ready && tool) chooseTool(tool);
  for (const button of all("[data-tool]")) button.disabled = !ready || (button.hasAttribute("data-patches") && !current.patches);
  get("#undo").disabled = !ready || !(current.undo || []).length;
  for (const button of all("[data-decision]")) {
    const { decision } = button.dataset;
    button.disabled = !ready || current.saving || (decision === "accepted" && edited) || (decision === "corrected" && !edited);
    button.classList.toggle("dm-primary", decision === (edited ? "corrected" : "accepted"));
  }
  showQueue();
}

async function decide(decision) {
  const picture = current;
  picture.saving = true;
  showTools();
  const rules = { min_share: Number(get("#min-share").value), largest_only: get("#largest").checked };
  const request = { id: picture.id, visit, path: picture.path, frame: picture.frame, key: picture.key, threshold: threshold(), edits: editRuns(picture) };
  let answer;
  try {
    answer = await callServer("save", { ...request, ...rules, decision, reviewer: get("#reviewer").value });
  } catch (problem) {
    answer = { id: picture.id, error: box(TEXT.server_lost) };
  }
  picture.saving = false;
  if (!current || answer.id !== current.id) return;
  if (answer.error) get("#panel-segment .dm-result").innerHTML = answer.error;
  else if (answer.saved) {
    get("#saved").textContent = write("saved", { decision, count: answer.saved });
    if (shownCase) shownCase.judged = true;
  }
  showTools();
}

/**
 * Put the tools directly below the viewer on a narrow screen, and else below the results; the keyboard follows. What is
 * said of abstention stays before them.
 */
function placeTools(narrow) {
  const tools = get(".dm-correct"), body = tools.parentElement, state = body.querySelector(".dm-state");
  if (narrow) {
    body.prepend(state, tools);
  } else {
    get("#largest").closest(".dm-check").after(state);
    body.append(tools);
  }
}

if (get(".dm-correct")) {
  placeTools(narrowScreen.matches);
  narrowScreen.addEventListener("change", () => moveWithFocus(() => placeTools(narrowScreen.matches)));
  get("input[type=file]").multiple = true;
  for (const button of all("[data-tool]")) button.addEventListener("click", () => chooseTool(button.dataset.tool));
  for (const button of all("[data-decision]")) button.addEventListener("click", () => decide(button.dataset.decision));
  get("#undo").addEventListener("click", undo);
  get("#next-case").addEventListener("click", nextCase);
  get("#brush-size").addEventListener("input", () => viewer.draw());
  get(".dm-stage").addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && key === "z") undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (key === "b" || key === "e" || key === "f") chooseTool({ b: "brush", e: "eraser", f: "fill" }[key]);
    else if ((key === "g" || key === "x") && current && current.patches) chooseTool({ g: "grow", x: "shrink" }[key]);
    else if (key === "n") nextCase();
    else return;
    event.preventDefault();
  });
  showTools();
}
