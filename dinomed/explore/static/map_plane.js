// A map of points on a canvas: colours by group, zoom, and a selection by a lasso or by the keyboard; for the demo and for pages.

const COLOURS = 8; // --c0 to --c7 of the style; further groups are gray
const REACH = 12; // px from the pointer to a point
const SLIP = 6; // px that a pointer may move while it clicks

/** Whether a place lies in a polygon, by the number of its edges to the right (even-odd rule). */
function inside(x, y, polygon) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i], [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}

/** The colour of a group, from the style of the page. */
function groupColour(group) {
  const style = getComputedStyle(document.querySelector(".dm-app") || document.documentElement);
  return (group < COLOURS && style.getPropertyValue(`--c${group}`).trim()) || "#8a94a3";
}

/**
 * List the values of a column with their colours and numbers of points, in `list`; clearing a box hides its points.
 * `groups` has the number of the group of each point, `names` the names of the groups.
 */
function listGroups(list, plane, names, groups) {
  const counts = new Uint32Array(names.length);
  for (const group of groups) counts[group]++;
  list.replaceChildren(...names.map((text, group) => {
    const item = document.createElement("li"), label = document.createElement("label");
    const box = document.createElement("input"), dot = document.createElement("i");
    Object.assign(box, { type: "checkbox", checked: true });
    dot.style.background = groupColour(group);
    box.addEventListener("change", () => plane.hide(group, !box.checked));
    label.append(box, dot, `${text} (${counts[group].toLocaleString("en-US")})`);
    item.append(label);
    return item;
  }));
}

/** Save text as a file of the visitor. */
function saveText(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

class MapPlane {
  /**
   * `onpoint` gets the number of the point under the pointer or the cross (-1 for none) and its place on the canvas;
   * `onselect` the numbers of the selected points, rising.
   */
  constructor(canvas, onpoint, onselect) {
    Object.assign(this, { canvas, onpoint, onselect, star: null, moving: false, lasso: null, drag: null, waiting: 0 });
    this.setPoints(new Float32Array(0));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Show points, x and y in turn, both 0 to 1. */
  setPoints(points) {
    this.points = points;
    this.total = points.length / 2;
    this.screen = new Float32Array(points.length);
    this.marked = new Uint8Array(this.total);
    this.groups = new Uint8Array(this.total);
    this.hidden = new Set();
    this.corner = this.cross = null;
    this.fit();
  }

  setGroups(groups) {
    this.groups = groups;
    this.hidden = new Set();
    this.draw();
  }

  /** Show the place [x, y] of one more image, which may lie outside 0 to 1, or none for null. */
  setStar(star) {
    this.star = star;
    if (star && star.some((value) => value < 0 || value > 1)) this.fit();
    this.draw();
  }

  hide(group, isHidden) {
    if (isHidden) this.hidden.add(group);
    else this.hidden.delete(group);
    this.draw();
  }

  isShown(at) {
    return !this.hidden.size || !this.hidden.has(this.groups[at]);
  }

  /** Show the whole map. */
  fit() {
    const [x, y] = this.star || [0.5, 0.5];
    const far = Math.max(0.5, Math.abs(x - 0.5), Math.abs(y - 0.5));
    this.view = { zoom: 0.5 / far, x: 0, y: 0 }; // the shift (x, y) of the middle, in sides of the plane
    this.draw();
  }

  side() {
    return Math.max(Math.min(this.canvas.clientWidth, this.canvas.clientHeight) - 24, 1);
  }

  place(x, y) {
    const side = this.side();
    return [
      this.canvas.clientWidth / 2 + ((x - 0.5) * this.view.zoom + this.view.x) * side,
      this.canvas.clientHeight / 2 + ((y - 0.5) * this.view.zoom + this.view.y) * side,
    ];
  }

  /** The place of point number `at` on the canvas, px. */
  pointOf(at) {
    return this.place(this.points[2 * at], this.points[2 * at + 1]);
  }

  /** Draw again, with `marksOnly` only the star, the lasso and the cross. */
  draw(marksOnly = false) {
    this.stale = this.stale || !marksOnly;
    this.waiting = this.waiting || requestAnimationFrame(() => this.paint());
  }

  /** Compute the places of all points; the layout is read once, not for each point. */
  locate() {
    const [left, top] = this.place(0, 0), scale = this.view.zoom * this.side();
    for (let at = 0; at < this.screen.length; at += 2) {
      this.screen[at] = left + this.points[at] * scale;
      this.screen[at + 1] = top + this.points[at + 1] * scale;
    }
  }

  /** Draw the points into an image of `width` x `height` px; pixel by pixel, which is faster than the shapes of a canvas. */
  paintPoints(width, height, ratio) {
    const { screen, total } = this, layer = new ImageData(width, height), pixels = layer.data;
    const radius = ratio * Math.min(Math.max((120 / Math.sqrt(total || 1)) * Math.sqrt(this.view.zoom), 1.8), 7);
    const reach = Math.ceil(radius), disc = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const cover = Math.min(Math.max(radius + 0.5 - Math.hypot(x, y), 0), 1);
        if (cover > 0) disc.push(x, y, cover);
      }
    }
    const colours = new Map(), anyMarked = this.marked.includes(1);
    for (const pass of anyMarked ? [0, 1] : [0]) {
      const opacity = anyMarked && !pass ? 0.25 : 0.85;
      for (let at = 0; at < total; at++) {
        const left = Math.round(screen[2 * at] * ratio), top = Math.round(screen[2 * at + 1] * ratio);
        if (this.marked[at] !== pass || !this.isShown(at) || left < -reach || top < -reach || left >= width + reach || top >= height + reach) continue;
        const group = this.groups[at];
        if (!colours.has(group)) colours.set(group, Number.parseInt(groupColour(group).slice(1), 16));
        const colour = colours.get(group), red = colour >> 16, green = (colour >> 8) & 255, blue = colour & 255;
        for (let k = 0; k < disc.length; k += 3) {
          const x = left + disc[k], y = top + disc[k + 1];
          if (x < 0 || y < 0 || x >= width || y >= height) continue;
          const place = 4 * (y * width + x), above = disc[k + 2] * opacity;
          const below = (pixels[place + 3] / 255) * (1 - above), sum = above + below;
          pixels[place] = (red * above + pixels[place] * below) / sum;
          pixels[place + 1] = (green * above + pixels[place + 1] * below) / sum;
          pixels[place + 2] = (blue * above + pixels[place + 2] * below) / sum;
          pixels[place + 3] = 255 * sum;
        }
      }
    }
    return layer;
  }

  paint() {
    this.waiting = 0;
    const { canvas } = this, ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return; // in a tab that is not shown
    if (this.stale || canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      this.locate();
      this.layer = this.paintPoints(width, height, ratio);
      this.stale = false;
    }
    context.putImageData(this.layer, 0, 0);
    context.save();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paintMarks(context);
    context.restore();
    canvas.dataset.painted = this.total;
  }

  paintMarks(context) {
    const ink = getComputedStyle(this.canvas).color;
    if (this.star) {
      const [x, y] = this.place(...this.star);
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
    const line = this.lasso || this.rectangle();
    context.strokeStyle = ink;
    if (line) {
      context.beginPath();
      for (const [x, y] of line) context.lineTo(x, y);
      context.closePath();
      context.setLineDash([5, 4]);
      context.stroke();
      context.setLineDash([]);
    }
    if (this.cross) {
      const [x, y] = this.cross;
      context.lineWidth = 1.5;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 4 * dx, y + 4 * dy);
        context.lineTo(x + 13 * dx, y + 13 * dy);
      }
      context.stroke();
      context.lineWidth = 1;
    }
  }

  /** Number of the shown point that is nearest to a place of the canvas, within `REACH` px; -1 for none. */
  nearest(x, y) {
    let best = -1, distance = REACH * REACH;
    for (let at = 0; at < this.total; at++) {
      const dx = this.screen[2 * at] - x, dy = this.screen[2 * at + 1] - y, away = dx * dx + dy * dy;
      if (away < distance && this.isShown(at)) [best, distance] = [at, away];
    }
    return best;
  }

  /** Select the shown points for which `test` is true of their place on the canvas and their number. */
  select(test) {
    const numbers = [];
    this.locate();
    for (let at = 0; at < this.total; at++) {
      this.marked[at] = this.isShown(at) && test(this.screen[2 * at], this.screen[2 * at + 1], at) ? 1 : 0;
      if (this.marked[at]) numbers.push(at);
    }
    this.draw();
    this.onselect(numbers);
  }

  /** Select the point that is nearest to a place of the canvas; no point near it changes nothing. */
  pick(x, y) {
    const nearest = this.nearest(x, y);
    if (nearest >= 0) this.select((left, top, at) => at === nearest);
  }

  /** Select the shown points in the visible part of the map. */
  selectVisible() {
    this.select((x, y) => x >= 0 && y >= 0 && x <= this.canvas.clientWidth && y <= this.canvas.clientHeight);
  }

  clear() {
    this.corner = null;
    this.select(() => false);
  }

  /** Enlarge the map around a place of the canvas. */
  zoomAt(factor, x, y) {
    const zoom = Math.min(Math.max(this.view.zoom * factor, 0.1), 80), ratio = zoom / this.view.zoom, side = this.side();
    const right = (x - this.canvas.clientWidth / 2) / side, down = (y - this.canvas.clientHeight / 2) / side;
    this.view = { zoom, x: right - (right - this.view.x) * ratio, y: down - (down - this.view.y) * ratio };
    this.corner = null;
    this.draw();
  }

  /** The corners of the rectangle between the first corner that was set and the cross, or null. */
  rectangle() {
    if (!this.corner) return null;
    const [ax, ay] = this.corner, [bx, by] = this.cross;
    return [[ax, ay], [bx, ay], [bx, by], [ax, by]];
  }

  moveCross(right, down) {
    const { clientWidth: width, clientHeight: height } = this.canvas, [x, y] = this.cross || [width / 2, height / 2];
    const to = [x + right, y + down], inner = [Math.min(Math.max(to[0], 0), width), Math.min(Math.max(to[1], 0), height)];
    this.view.x -= (to[0] - inner[0]) / this.side(); // at the edge the map moves
    this.view.y -= (to[1] - inner[1]) / this.side();
    if (this.corner) this.corner = [this.corner[0] - to[0] + inner[0], this.corner[1] - to[1] + inner[1]];
    this.cross = inner;
    const hasMoved = to[0] !== inner[0] || to[1] !== inner[1];
    if (hasMoved) this.locate();
    this.onpoint(this.nearest(...inner), ...inner);
    this.draw(!hasMoved);
  }

  setCorner() {
    if (!this.cross) this.moveCross(0, 0);
    const line = this.rectangle();
    this.corner = line ? null : this.cross;
    if (line) {
      const [[left, top], , [right, bottom]] = line;
      this.select((x, y) => (x - left) * (x - right) <= 0 && (y - top) * (y - bottom) <= 0);
    }
    this.draw();
  }

  press(event) {
    const step = event.shiftKey ? 2 : 14, middle = [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    const actions = {
      ArrowLeft: () => this.moveCross(-step, 0), ArrowRight: () => this.moveCross(step, 0),
      ArrowUp: () => this.moveCross(0, -step), ArrowDown: () => this.moveCross(0, step),
      " ": () => this.setCorner(), Enter: () => this.cross && this.pick(...this.cross), Escape: () => this.clear(), 0: () => this.fit(),
      "+": () => this.zoomAt(1.25, ...(this.cross || middle)), "-": () => this.zoomAt(0.8, ...(this.cross || middle)),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return; // the menu of the browser
      canvas.setPointerCapture(event.pointerId);
      this.onpoint(-1, 0, 0);
      this.start = this.drag = at(event);
      this.hasMoved = false;
      this.cross = this.corner = null;
      this.lasso = this.moving ? null : [this.drag];
    });
    canvas.addEventListener("pointermove", (event) => {
      const place = at(event);
      if (!this.drag) return this.onpoint(this.nearest(...place), ...place);
      this.hasMoved = this.hasMoved || Math.hypot(place[0] - this.start[0], place[1] - this.start[1]) > SLIP;
      if (!this.moving) {
        this.lasso.push(place);
        return this.draw(true);
      }
      this.view.x += (place[0] - this.drag[0]) / this.side();
      this.view.y += (place[1] - this.drag[1]) / this.side();
      this.drag = place;
      this.draw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        const polygon = this.lasso, isClick = this.drag && !this.hasMoved;
        this.drag = this.lasso = null;
        if (name === "pointerup" && isClick) this.pick(...this.start);
        else if (name === "pointerup" && polygon && polygon.length > 2) this.select((x, y) => inside(x, y, polygon));
        this.draw(true);
      });
    }
    canvas.addEventListener("pointerleave", () => this.onpoint(-1, 0, 0));
    canvas.addEventListener("blur", () => {
      this.cross = this.corner = null;
      this.onpoint(-1, 0, 0);
      this.draw(true);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomAt(Math.exp(-event.deltaY * 0.0016), ...at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.press(event));
  }
}
