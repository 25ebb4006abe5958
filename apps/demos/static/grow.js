// Corrections by similar patches, and a cursor for the tools that is moved with the arrow keys.
//
// Rule: a click sets (or clears) the clicked patch, and every pixel of the map that is connected with it and whose similarity to it is
// at least the chosen one. The similarity is the cosine of the features of patches, interpolated between the centres of patches.

const CURSOR_STEP_PX = 12; // of an arrow key, on the screen, for the tools that have no patches
let grown = null; // {picture, place, tool} of the last click, until anything else is edited or undone

/** Features of the patches of a picture, or null if its answer has none. */
function patchFeatures(picture) {
  const sent = picture && picture.patches;
  if (sent && !picture.features) picture.features = takeFeatures(sent.features, sent.rows, sent.columns, sent.components);
  return sent ? picture.features : null;
}

/** Similarity of a patch to each pixel of a map of width x height, as a function of (x, y). */
function similarityField(features, patch, width, height) {
  const { rows, columns } = features, values = similarityTo(features, patch, features);
  const between = (at, count) => {
    const place = Math.min(Math.max(at, 0), count - 1), low = Math.min(Math.floor(place), Math.max(count - 2, 0));
    return [low, Math.min(low + 1, count - 1), place - low];
  };
  return (x, y) => {
    const [left, right, across] = between(((x + 0.5) * columns) / width - 0.5, columns);
    const [top, bottom, down] = between(((y + 0.5) * rows) / height - 0.5, rows);
    const row = (at) => values[at * columns + left] * (1 - across) + values[at * columns + right] * across;
    return row(top) * (1 - down) + row(bottom) * down;
  };
}

/** Set the value of an edit for the pixels of the rule; `place` is [x, y], 0 to 1 of the picture. */
function growRegion(picture, place, value, least) {
  const { width, height, edits } = picture, features = patchFeatures(picture), { rows, columns } = features;
  const patch = patchAt(place[0], place[1], rows, columns), similarity = similarityField(features, patch, width, height);
  const seen = new Uint8Array(width * height), waiting = [];
  const take = (at) => {
    seen[at] = 1;
    edits[at] = value;
    waiting.push(at);
  };
  const edge = (at, count, size) => Math.min(Math.max(Math.round((at * size) / count), 0), size);
  const top = Math.floor(patch / columns), left = patch % columns;
  for (let y = edge(top, rows, height); y < edge(top + 1, rows, height); y++) {
    for (let x = edge(left, columns, width); x < edge(left + 1, columns, width); x++) take(y * width + x);
  }
  while (waiting.length) {
    const at = waiting.pop(), x = at % width, y = (at - x) / width;
    const around = [y ? at - width : -1, y < height - 1 ? at + width : -1, x ? at - 1 : -1, x < width - 1 ? at + 1 : -1];
    for (const next of around) {
      if (next >= 0 && !seen[next] && similarity(next % width, Math.floor(next / width)) >= least) take(next);
    }
  }
}

class Grow {
  constructor(value) {
    this.value = value;
  }

  start(point) {
    const picture = current;
    this.applied = false;
    if (!picture || !picture.levels || !patchFeatures(picture)) return;
    const place = [0, 1].map((axis) => point[axis] / picture.size[axis]);
    if (place.some((part) => !(part >= 0 && part < 1))) return;
    this.apply(picture, place);
    this.applied = true;
  }

  apply(picture, place) {
    remember(picture);
    growRegion(picture, place, this.value, Number(get("#grow-similarity").value));
    grown = { picture, place, tool: this };
    outline();
  }

  move() {}

  end() {}

  cancel() {
    if (this.applied) undo();
    this.applied = false;
  }

  /** Draw the frame of the patch at a place of the stage. */
  paint(context, place) {
    const features = patchFeatures(current);
    if (!features) return;
    const [x, y] = viewer.toPicture(place).map((part, axis) => part / viewer.size[axis]);
    if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) return;
    const { rows, columns } = features, origin = viewer.origin(), scale = viewer.scale();
    const size = [(viewer.size[0] * scale) / columns, (viewer.size[1] * scale) / rows];
    const corner = [origin[0] + Math.floor(x * columns) * size[0], origin[1] + Math.floor(y * rows) * size[1]];
    for (const [colour, width] of [["#000000", 3], [RING, 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(...corner, ...size);
    }
  }
}

/** Apply another similarity to the last click, if nothing was edited since. */
function growAgain() {
  if (!grown || grown.picture !== current) return;
  const { picture, place, tool: last } = grown;
  picture.edits = picture.undo.pop();
  last.apply(picture, place);
}

// ---- cursor

const CURSOR_ARM_PX = 11;
let cursor = null; // {picture, place, isShown}: of the arrow keys, in pixels of the picture

/** Draw the cursor of the arrow keys, for a tool without a ring; the pointer has a cursor of its own. */
function paintCursor(context, [x, y]) {
  if (!cursor || cursor.picture !== current || !cursor.isShown) return;
  for (const [colour, width] of [["#000000", 4], [RING, 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    for (const [across, down] of [[CURSOR_ARM_PX, 0], [0, CURSOR_ARM_PX]]) {
      context.moveTo(x - across, y - down);
      context.lineTo(x + across, y + down);
    }
    context.stroke();
  }
}

/** Move the cursor of the chosen tool by a step, or apply the tool at it; returns whether the key is one of the cursor. */
function moveCursor(key) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  if (!step && key !== "Enter" && key !== " ") return false;
  const [wide, tall] = viewer.size, scale = viewer.scale();
  if (!cursor || cursor.picture !== current) {
    const middle = viewer.toPicture([viewer.stage.clientWidth / 2, viewer.stage.clientHeight / 2]);
    cursor = { picture: current, place: middle };
  }
  cursor.isShown = true;
  if (step) {
    const features = viewer.tool instanceof Grow && patchFeatures(current);
    const lengths = features ? [wide / features.columns, tall / features.rows] : [CURSOR_STEP_PX / scale, CURSOR_STEP_PX / scale];
    cursor.place = cursor.place.map((at, axis) => Math.min(Math.max(at + step[axis] * lengths[axis], 0.5), viewer.size[axis] - 0.5));
  } else {
    viewer.tool.start(cursor.place);
    viewer.tool.end();
  }
  viewer.pinned = cursor.place; // drawn where it is after a zoom, too
  const origin = viewer.origin(), room = [viewer.stage.clientWidth, viewer.stage.clientHeight];
  viewer.moveBy(...cursor.place.map((part, axis) => { // into view
    const at = origin[axis] + part * scale;
    return Math.min(Math.max(at, CURSOR_ARM_PX), room[axis] - CURSOR_ARM_PX) - at;
  }));
  return true;
}

get(".dm-stage").addEventListener("keydown", (event) => {
  if (!viewer.tool || !viewer.picture || viewer.tool === windowTool || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (!moveCursor(event.key)) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // arrow keys move the picture otherwise
}, { capture: true });
get(".dm-stage").addEventListener("pointermove", () => { if (cursor) cursor.isShown = false; });
if (get("#grow-similarity")) get("#grow-similarity").addEventListener("input", growAgain);
