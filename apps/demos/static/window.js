// Window of gray values, for gray DICOM images and gray PNG or TIFF of 16-bit or 32-bit integers: by dragging, numbers, presets and keys. Display only.

const DRAG_PX = 200, KEY_STEP = 0.05; // dragging 200 px moves the centre by one width, or changes the width by the factor e
let gray = null; // {picture, codes, size, low, step, inverted, unit, options, start, chosen} of the picture that is shown

/** Ask for the values of the picture that is shown; the window can be changed when they are there. */
async function askValues(picture) {
  let answer;
  try {
    answer = await callServer("values", { id: picture.id, visit, path: picture.path, frame: picture.frame });
  } catch (problem) {
    return; // the picture stays in the window of its file
  }
  if (!current || current !== picture || answer.id !== picture.id || !answer.codes) return;
  const codes = new Uint16Array(await inflate(answer.codes));
  if (current === picture) showWindow({ ...answer, picture, codes });
}

/** Unpack deflated bytes (RFC 1950) in Base64. */
async function inflate(text) {
  const packed = atob(text), bytes = new Uint8Array(packed.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = packed.charCodeAt(at);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

/** Offer the windows of a picture; null: remove those of the previous one. */
function showWindow(values) {
  gray = values;
  get("#windowing").hidden = !values;
  if (!values) {
    if (viewer.tool === windowTool) viewer.useTool(null);
    viewer.setWindowed(null);
    return;
  }
  const { window: first, windows, has_curve: hasCurve } = values;
  values.options = hasCurve ? [{ curve: true, ...first, name: "" }, ...windows] : windows.length ? windows : [{ ...first, range: true }];
  [values.start] = values.options;
  values.canvas = document.createElement("canvas");
  [values.canvas.width, values.canvas.height] = values.size;
  get("#window-unit").textContent = values.unit || TEXT.window_of_file;
  get("#window-preset").replaceChildren(...values.options.map((option, at) => new Option(optionName(option, at), at)));
  get("#window-preset").append(new Option(TEXT.window_custom, "own"));
  setWindow(values.picture.window || values.start);
}

const isEqualWindow = (a, b) => Boolean(a.curve) === Boolean(b.curve) && ["center", "width", "function"].every((key) => a[key] === b[key]);

function optionName(option, at) {
  const numbers = { center: shortNumber(option.center), width: shortNumber(option.width), number: at + 1, name: option.name };
  if (option.curve) return TEXT.window_curve;
  return write(option.range ? "window_range" : option.name ? "window_named" : "window_number", numbers);
}

/** A number for display: whole numbers are exact, others have 6 significant digits and at least one decimal. */
const shortNumber = (value) => String(Number.isInteger(value) ? value : Number(Math.abs(value) < 1e5 ? value.toPrecision(6) : value.toFixed(1)));

/** Values that become black and white; the function LINEAR uses centre - 0.5 and width - 1 (DICOM PS3.3, C.11.2.1.2.1). */
function windowLimits({ center, width, function: kind }) {
  const shift = kind === "LINEAR" ? 1 : 0;
  return [center - shift / 2 - (width - shift) / 2, center - shift / 2 + (width - shift) / 2];
}

/** Gray level, 0 to 255, of each code of a picture; code 0 is padding and black. */
function windowLevels(values, chosen) {
  const levels = new Uint8ClampedArray(65536), [black, white] = windowLimits(chosen), { low, step, inverted } = values;
  for (let code = 1; code < levels.length; code++) {
    const value = low + (code - 1) * step;
    const share = chosen.function === "SIGMOID" ? 1 / (1 + Math.exp((-4 * (value - chosen.center)) / chosen.width))
      : Math.min(Math.max((value - black) / Math.max(white - black, 1e-9), 0), 1);
    levels[code] = 255 * (inverted ? 1 - share : share);
  }
  return levels;
}

/** Take a window; it is painted in the next frame. Bad numbers leave the last one in place. */
function setWindow(chosen) {
  if (!gray || !Number.isFinite(chosen.center) || !Number.isFinite(chosen.width)) return;
  const least = chosen.function === "LINEAR" ? 1 : Math.min(gray.step, gray.start.width);
  gray.chosen = { ...chosen, width: Math.max(chosen.width, least) };
  const { center, width } = gray.chosen, at = gray.options.findIndex((option) => isEqualWindow(option, chosen));
  for (const [name, value] of [["#window-center", center], ["#window-width", width]]) {
    if (document.activeElement !== get(name)) get(name).value = shortNumber(value);
  }
  get("#window-preset").value = at < 0 ? "own" : at;
  const unit = gray.unit || TEXT.window_of_file;
  get("#window-state").textContent = chosen.curve ? TEXT.window_curve
    : write("window_state", { center: shortNumber(center), width: shortNumber(width), unit });
  gray.waiting = gray.waiting || requestAnimationFrame(paintWindow);
}

function paintWindow() {
  const values = gray;
  if (!values) return;
  values.waiting = 0;
  if (values.chosen.curve) return viewer.setWindowed(null); // the preview has the curve
  const [width, height] = values.size, image = new ImageData(width, height), levels = windowLevels(values, values.chosen);
  const colours = Uint32Array.from(levels, (level) => 0xff000000 | (level << 16) | (level << 8) | level);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < pixels.length; at++) pixels[at] = colours[values.codes[at]];
  values.canvas.getContext("2d").putImageData(image, 0, 0);
  viewer.setWindowed(values.canvas);
}

/** Change the window `from` by a way in pixels of the page. */
function dragWindow(from, dx, dy) {
  setWindow({ center: from.center + (dy * from.width) / DRAG_PX, width: from.width * Math.exp(dx / DRAG_PX), function: from.function });
}

class WindowTool {
  start(point) {
    this.from = gray && { ...gray.chosen, point, scale: viewer.scale() };
  }

  move(point) {
    if (this.from) dragWindow(this.from, ...[0, 1].map((axis) => (point[axis] - this.from.point[axis]) * this.from.scale));
  }

  end() {
    this.from = null;
  }

  cancel() {
    if (this.from) setWindow(this.from);
    this.from = null;
  }
}

const windowTool = new WindowTool();

function toggleWindowTool() {
  const on = viewer.tool !== windowTool;
  if (tool) chooseTool(tool);
  useRuler(false);
  viewer.useTool(on ? windowTool : null);
}

function listenToWindow() {
  const stage = get(".dm-stage");
  let held = null; // window and place where the right button was pressed
  stage.addEventListener("contextmenu", (event) => gray && event.preventDefault());
  stage.addEventListener("pointerdown", (event) => {
    if (!gray || event.button !== 2 || event.pointerType !== "mouse") return;
    held = { ...gray.chosen, picture: gray.picture, x: event.clientX, y: event.clientY };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (held && gray && held.picture === gray.picture) dragWindow(held, event.clientX - held.x, event.clientY - held.y);
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { held = null; });
  stage.addEventListener("dm-tool", () => get("#window-tool").setAttribute("aria-pressed", viewer.tool === windowTool));
  stage.addEventListener("keydown", (event) => {
    if (!gray || event.ctrlKey || event.metaKey || event.altKey) return;
    const { center, width, function: kind } = gray.chosen, step = width * KEY_STEP;
    const next = { ArrowRight: [0, step], ArrowLeft: [0, -step], ArrowDown: [step, 0], ArrowUp: [-step, 0] }[event.key];
    if (event.shiftKey && next) setWindow({ center: center + next[0], width: width + next[1], function: kind });
    else if (event.key.toLowerCase() === "w") toggleWindowTool();
    else return;
    event.preventDefault();
    event.stopImmediatePropagation(); // arrow keys move the picture otherwise
  }, { capture: true });
  for (const [name, key] of [["#window-center", "center"], ["#window-width", "width"]]) {
    get(name).addEventListener("input", (event) => {
      const value = event.target.valueAsNumber;
      if (gray && Number.isFinite(value) && (key === "center" || value > 0)) setWindow({ ...ownWindow(), [key]: value });
    });
    get(name).addEventListener("blur", (event) => {
      if (gray) event.target.value = shortNumber(gray.chosen[key]);
    });
  }
  get("#window-preset").addEventListener("change", (event) => {
    if (gray) setWindow(gray.options[event.target.value] || ownWindow());
  });
  get("#window-reset").addEventListener("click", () => gray && setWindow(gray.start));
  get("#window-tool").addEventListener("click", toggleWindowTool);
}

/** The chosen window as numbers, without the curve. */
const ownWindow = () => ({ center: gray.chosen.center, width: gray.chosen.width, function: gray.chosen.function });

listenToWindow();
