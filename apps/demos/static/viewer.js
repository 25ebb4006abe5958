// The viewer: a picture with its overlay, drawn at the resolution of the screen; zoom and pan by wheel, touch and keys.

const LINE = "#00e5ff", HALO = "#002633"; // cyan differs from skin, lesions and ink; the dark rim gives contrast on skin
const SCALE = [[26, 22, 60], [36, 92, 122], [62, 161, 128], [178, 208, 70], [253, 240, 120]]; // rises in lightness
const MAX_ZOOM = 40, STEP = 1.25;

class Viewer {
  constructor(stage, canvas, onchange) {
    Object.assign(this, { stage, canvas, onchange, mode: "outline", opacity: 0.65, wipe: 1, comparing: false });
    this.pointers = new Map();
    this.tool = null; // takes the pointer in place of moving the picture: {start, move, end, cancel}, and paint for its ring
    this.hover = null; // place of the pointer in the stage
    this.clear();
    new ResizeObserver(() => this.resize()).observe(stage);
    this.listen();
  }

  /** Remove the picture and everything that belongs to it, at once. */
  clear() {
    this.lines = []; // [{from, to}] in pixels of the picture; to may be null
    this.pinned = null; // cursor of the keys, in pixels of the picture; it takes the place of the pointer
    Object.assign(this, { picture: null, windowed: null, spacing: null, size: [1, 1], heat: null, path: null, mapSize: [1, 1], marks: [] });
    this.fit();
  }

  /** Show a picture of `size` pixels; `spacing` is the distance of rows and of columns in mm, if it is known, and `view`
   * the zoom and the shift at first. */
  show(picture, size, spacing, view = { zoom: 1, shift: [0, 0] }) {
    Object.assign(this, { picture, size, spacing, ...view });
    this.limit();
    this.draw();
  }

  /** Draw `canvas` in place of the picture, of the same proportions; null: the picture again. */
  setWindowed(canvas) {
    this.windowed = canvas;
    this.draw();
  }

  /** Set the map of probability levels, Uint8Array of 0 to `top`; it is drawn as a heat map. */
  setMap(levels, width, height, top) {
    const heat = new ImageData(width, height);
    const colours = Array.from({ length: top + 1 }, (_, level) => colourOf(level / top));
    for (let at = 0; at < levels.length; at++) {
      const colour = colours[levels[at]];
      heat.data[4 * at] = colour[0];
      heat.data[4 * at + 1] = colour[1];
      heat.data[4 * at + 2] = colour[2];
      heat.data[4 * at + 3] = 255;
    }
    this.heat = document.createElement("canvas");
    this.heat.width = width;
    this.heat.height = height;
    this.heat.getContext("2d").putImageData(heat, 0, 0);
    this.mapSize = [width, height];
  }

  /** Set the outline, a path in pixels of the map, and the numbers to write: [{x, y, text}]. */
  setOutline(path, marks) {
    this.path = path;
    this.marks = marks;
    this.draw();
  }

  /** Let a tool take the pointer; null: dragging moves the picture. */
  useTool(tool) {
    this.tool = tool;
    this.hover = this.pinned = null;
    this.stage.classList.toggle("dm-drawing", Boolean(tool));
    this.stage.dispatchEvent(new Event("dm-tool"));
    this.limit();
    this.draw();
  }

  /** A place of the stage as a place in the picture, in its pixels. */
  toPicture(place) {
    const origin = this.origin(), scale = this.scale();
    return [0, 1].map((axis) => (place[axis] - origin[axis]) / scale);
  }

  fit() {
    this.zoom = 1;
    this.shift = [0, 0];
    this.draw();
  }

  /** Pixels of the page for a pixel of the picture. */
  scale() {
    const [width, height] = this.size;
    return this.zoom * Math.min(this.stage.clientWidth / width, this.stage.clientHeight / height);
  }

  /** Place of the upper left corner of the picture in the stage, in pixels of the page. */
  origin() {
    const scale = this.scale();
    return [0, 1].map((axis) => {
      const room = axis ? this.stage.clientHeight : this.stage.clientWidth;
      return (room - this.size[axis] * scale) / 2 + this.shift[axis];
    });
  }

  /** Zoom by a factor; the point (x, y) of the stage stays where it is. */
  zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.picture) return;
    const zoom = Math.min(Math.max(this.zoom * factor, 1), MAX_ZOOM);
    const ratio = zoom / this.zoom, origin = this.origin();
    const middle = [this.stage.clientWidth / 2, this.stage.clientHeight / 2];
    this.zoom = zoom;
    this.shift = [x, y].map((point, axis) => {
      const corner = point - (point - origin[axis]) * ratio;
      return corner - (middle[axis] - (this.size[axis] * this.scale()) / 2);
    });
    this.limit();
    this.draw();
  }

  moveBy(dx, dy) {
    if (!this.picture) return;
    this.shift = [this.shift[0] + dx, this.shift[1] + dy];
    this.limit();
    this.draw();
  }

  /** Zoom to a box of the picture, in its pixels. */
  focus(left, top, right, bottom) {
    this.fit();
    const fitted = this.scale();
    const room = Math.min(this.stage.clientWidth / (right - left), this.stage.clientHeight / (bottom - top));
    this.zoom = Math.min(Math.max((0.6 * room) / fitted, 1), MAX_ZOOM);
    const scale = this.scale();
    this.shift = [(this.size[0] / 2 - (left + right) / 2) * scale, (this.size[1] / 2 - (top + bottom) / 2) * scale];
    this.limit();
    this.draw();
  }

  /** Keep the picture in the stage. */
  limit() {
    const scale = this.scale();
    this.shift = this.shift.map((value, axis) => {
      const room = axis ? this.stage.clientHeight : this.stage.clientWidth;
      const most = Math.max(0, (this.size[axis] * scale - room) / 2);
      return Math.min(Math.max(value, -most), most);
    });
    this.stage.style.touchAction = this.zoom > 1 || this.tool ? "none" : "pan-y";
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.stage.clientWidth * ratio), height = Math.round(this.stage.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.limit();
    this.draw();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
    });
  }

  paint() {
    const context = this.canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.onchange(this);
    if (!this.picture) return;
    const scale = this.scale(), origin = this.origin(), [width, height] = this.size;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = scale < 4;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.windowed || this.picture, origin[0], origin[1], width * scale, height * scale);
    if (!this.comparing && this.mode !== "plain" && this.heat) this.paintOverlay(context, origin, scale);
    if (!this.comparing) this.paintLines(context, origin, scale);
    if (this.spacing) this.paintScaleBar(context, scale / this.spacing[1]);
    const place = this.pinned ? this.pinned.map((at, axis) => origin[axis] + at * scale) : this.hover;
    if (this.tool && this.tool.paint && place) this.tool.paint(context, place);
  }

  paintOverlay(context, origin, scale) {
    const [width, height] = this.size;
    const right = origin[0] + width * scale * this.wipe;
    context.save();
    context.beginPath();
    context.rect(origin[0], origin[1], right - origin[0], height * scale);
    context.clip();
    if (this.mode === "heat") {
      context.globalAlpha = this.opacity;
      context.imageSmoothingEnabled = true;
      context.drawImage(this.heat, origin[0], origin[1], width * scale, height * scale);
      context.globalAlpha = 1;
    } else if (this.path) {
      this.paintOutline(context, origin, scale);
    }
    context.restore();
    if (this.wipe < 1) {
      context.fillStyle = "#ffffff";
      context.fillRect(right - 1, origin[1], 2, height * scale);
    }
  }

  paintLines(context, origin, scale) {
    for (const line of this.lines) {
      if (this.mode !== "outline" && this.mode !== "filled" && !line.ruler) continue;
      const [from, to] = [line.from, line.to || line.from].map((point) => [0, 1].map((axis) => origin[axis] + point[axis] * scale));
      context.setLineDash(line.ruler ? [] : [6, 4]);
      for (const [colour, width] of [["#000000", 4], [AXIS, 1.8]]) {
        context.strokeStyle = context.fillStyle = colour;
        context.lineWidth = width;
        context.beginPath();
        context.moveTo(...from);
        context.lineTo(...to);
        context.stroke();
        context.beginPath();
        for (const end of line.ruler ? [from, to] : []) context.arc(...end, 2 + width, 0, 2 * Math.PI);
        context.fill();
      }
      context.setLineDash([]);
    }
  }

  /** Draw a bar of 1, 2 or 5 times a power of ten mm; `each` is the length of a mm in pixels of the page. */
  paintScaleBar(context, each) {
    const power = 10 ** Math.floor(Math.log10(140 / each));
    const length = [5, 2, 1].map((step) => step * power).find((step) => step * each <= 140);
    const [x, y] = [16, this.stage.clientHeight - 16];
    context.font = "600 13px system-ui, sans-serif";
    context.textAlign = "left";
    context.textBaseline = "bottom";
    for (const [colour, width] of [["#000000", 6], ["#ffffff", 2.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + length * each, y);
      context.stroke();
    }
    context.lineWidth = 3;
    context.strokeStyle = "#000000";
    context.strokeText(`${length} mm`, x, y - 5);
    context.fillStyle = "#ffffff";
    context.fillText(`${length} mm`, x, y - 5);
  }

  paintOutline(context, origin, scale) {
    const stretch = [0, 1].map((axis) => (this.size[axis] / this.mapSize[axis]) * scale);
    const placed = new Path2D();
    placed.addPath(this.path, new DOMMatrix([stretch[0], 0, 0, stretch[1], origin[0], origin[1]]));
    if (this.mode === "filled") {
      context.globalAlpha = 0.5 * this.opacity;
      context.fillStyle = LINE;
      context.fill(placed, "evenodd");
      context.globalAlpha = 1;
    }
    context.lineJoin = "round";
    for (const [colour, width] of [[HALO, 4.5], [LINE, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke(placed);
    }
    if (this.marks.length < 2) return;
    context.font = "600 13px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const mark of this.marks) {
      const x = origin[0] + mark.x * stretch[0], y = origin[1] + mark.y * stretch[1];
      context.lineWidth = 3;
      context.strokeStyle = HALO;
      context.strokeText(mark.text, x, y);
      context.fillStyle = LINE;
      context.fillText(mark.text, x, y);
    }
  }

  listen() {
    const stage = this.stage;
    const place = (event) => {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    stage.addEventListener("wheel", (event) => {
      if (!this.picture) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), ...place(event));
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => {
      if (!this.picture || event.button > 0) return;
      this.pointers.set(event.pointerId, place(event));
      if (event.pointerType === "mouse") stage.setPointerCapture(event.pointerId);
      if (this.tool && this.pointers.size === 1) this.tool.start(this.toPicture(place(event)));
      else if (this.tool && this.pointers.size === 2) this.tool.cancel(); // two fingers zoom
    });
    stage.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId), now = place(event);
      if (this.tool) {
        this.hover = now;
        this.pinned = null;
        this.draw();
      }
      if (!before) return;
      const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      this.pointers.set(event.pointerId, now);
      if (others.length === 1) {
        const distance = (point) => Math.hypot(point[0] - others[0][0], point[1] - others[0][1]);
        const middle = [0, 1].map((axis) => (now[axis] + others[0][axis]) / 2);
        this.zoomBy(distance(now) / Math.max(distance(before), 1), ...middle);
        this.moveBy((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      } else if (this.tool) {
        this.tool.move(this.toPicture(now));
      } else if (others.length === 0) {
        this.moveBy(now[0] - before[0], now[1] - before[1]);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => {
        if (this.pointers.delete(event.pointerId) && this.tool && !this.pointers.size) this.tool.end();
      });
    }
    stage.addEventListener("pointerleave", () => {
      this.hover = this.pinned = null;
      this.draw();
    });
    stage.addEventListener("dblclick", () => this.tool || this.fit());
    stage.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (moves[event.key] && this.zoom > 1) this.moveBy(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoomBy(STEP);
      else if (event.key === "-") this.zoomBy(1 / STEP);
      else if (event.key === "0") this.fit();
      else return;
      event.preventDefault();
    });
  }
}

/** Colour of a probability, [red, green, blue]. */
function colourOf(probability) {
  const place = probability * (SCALE.length - 1), at = Math.min(Math.floor(place), SCALE.length - 2);
  return [0, 1, 2].map((channel) => Math.round(SCALE[at][channel] + (place - at) * (SCALE[at + 1][channel] - SCALE[at][channel])));
}
