// Measures of a region: longest and perpendicular diameter, asymmetry; and a ruler for images without pixel spacing.

const AXIS = "#ffd54a", MAX_SAMPLES = 40000, SETTLED_MS = 150;

/** Convex hull of points [[x, y], ...] (monotone chain). */
function convexHull(points) {
  const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const turns = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
  const half = (ordered) => {
    const hull = [];
    for (const point of ordered) {
      while (hull.length > 1 && turns(hull[hull.length - 2], hull[hull.length - 1], point) <= 0) hull.pop();
      hull.push(point);
    }
    return hull.slice(0, -1);
  };
  return [...half(sorted), ...half(sorted.reverse())];
}

/** Longest diameter of a region between corners of its pixels, and its extent perpendicular to that.
 * `runs` are [start, end, ...] positions in a map of `width` columns; a pixel is `sx` wide and `sy` high.
 * Returns {longest, perpendicular, from, to}, in the unit of sx and sy. */
function regionDiameters(runs, width, sx, sy) {
  const corners = [];
  for (let run = 0; run < runs.length; run += 2) {
    const y = Math.floor(runs[run] / width), left = runs[run] - y * width, right = runs[run + 1] - y * width;
    for (const row of [y, y + 1]) corners.push([left * sx, row * sy], [right * sx, row * sy]);
  }
  const hull = convexHull(corners);
  let best = { longest: 0, from: hull[0], to: hull[0] };
  for (let i = 0; i < hull.length; i++) {
    for (let j = i + 1; j < hull.length; j++) {
      const longest = Math.hypot(hull[i][0] - hull[j][0], hull[i][1] - hull[j][1]);
      if (longest > best.longest) best = { longest, from: hull[i], to: hull[j] };
    }
  }
  const across = [(best.from[1] - best.to[1]) / best.longest, (best.to[0] - best.from[0]) / best.longest];
  const places = hull.map((point) => point[0] * across[0] + point[1] * across[1]);
  return { ...best, perpendicular: Math.max(...places) - Math.min(...places) };
}

/** Asymmetry of a region, 0 to 1: the share of its pixels whose mirror image about a principal axis is not in it, mean of both
 * axes through the centre of mass. Large regions are sampled. */
function regionAsymmetry(runs, width, sx, sy) {
  let area = 0, x = 0, y = 0, top = Infinity, bottom = 0, left = Infinity, right = 0;
  const each = (use) => {
    for (let run = 0; run < runs.length; run += 2) {
      const row = Math.floor(runs[run] / width);
      for (let at = runs[run]; at < runs[run + 1]; at++) use(at - row * width, row);
    }
  };
  each((column, row) => {
    area++;
    x += column;
    y += row;
    top = Math.min(top, row);
    bottom = Math.max(bottom, row);
    left = Math.min(left, column);
    right = Math.max(right, column);
  });
  x /= area;
  y /= area;
  const wide = right - left + 1, mask = new Uint8Array(wide * (bottom - top + 1));
  let xx = 0, xy = 0, yy = 0;
  each((column, row) => {
    mask[(row - top) * wide + column - left] = 1;
    xx += ((column - x) * sx) ** 2;
    xy += (column - x) * sx * (row - y) * sy;
    yy += ((row - y) * sy) ** 2;
  });
  const angle = 0.5 * Math.atan2(2 * xy, xx - yy), step = Math.max(1, Math.floor(area / MAX_SAMPLES));
  let outside = 0, tried = 0;
  for (const turn of [angle, angle + Math.PI / 2]) {
    const cosine = Math.cos(2 * turn), sine = Math.sin(2 * turn);
    let number = 0;
    each((column, row) => {
      if (number++ % step) return;
      const dx = (column - x) * sx, dy = (row - y) * sy;
      const c = Math.round(x + (cosine * dx + sine * dy) / sx) - left, r = Math.round(y + (sine * dx - cosine * dy) / sy) - top;
      tried++;
      if (c < 0 || r < 0 || c >= wide || r >= mask.length / wide || !mask[r * wide + c]) outside++;
    });
  }
  return outside / tried;
}

let settling = 0;

/** Measure the largest region, when the threshold has not moved for a moment. */
function measureShape() {
  clearTimeout(settling);
  viewer.lines = viewer.lines.filter((line) => line.ruler);
  const shape = get("#shape");
  if (!shape) return;
  // Its place is kept while it is measured: what lies below must not move under the pointer.
  shape.hidden = !(current && current.regions && current.regions.length);
  shape.setAttribute("aria-busy", true);
  settling = setTimeout(() => {
    const picture = current, region = picture && picture.regions && picture.regions[0];
    if (!region) return;
    const scale = [picture.size[0] / picture.width, picture.size[1] / picture.height]; // pixels of the image
    const [row, column] = picture.spacing || [1, 1], unit = picture.spacing ? "mm" : "px";
    const sx = scale[0] * column, sy = scale[1] * row;
    const size = regionDiameters(region.runs, picture.width, sx, sy);
    const show = (value) => `${value < 100 ? value.toPrecision(3) : count(value)} <small>${unit}</small>`;
    get("#diameter").innerHTML = show(size.longest);
    get("#perpendicular").innerHTML = show(size.perpendicular);
    get("#asymmetry").textContent = regionAsymmetry(region.runs, picture.width, sx, sy).toFixed(2);
    shape.setAttribute("aria-busy", false);
    const place = (point) => [point[0] / column, point[1] / row];
    viewer.lines = [...viewer.lines.filter((line) => line.ruler), { from: place(size.from), to: place(size.to) }];
    viewer.draw();
  }, SETTLED_MS);
}

class Ruler {
  start(point) {
    const [line] = viewer.lines.filter((each) => each.ruler);
    const next = !line || line.to ? { ruler: true, from: point, to: null } : { ...line, to: point };
    viewer.lines = [...viewer.lines.filter((each) => !each.ruler), next];
    get("#scale-form").hidden = !next.to;
    get("#scale-mm").value = ""; // a length is that of one line
    viewer.draw();
  }

  move() {}

  end() {
    askLength();
  }

  cancel() {}

  paint(context, place) {
    paintCursor(context, place);
  }
}

/** Move the focus to the length of a complete line. */
function askLength() {
  if (viewer.tool !== ruler || !viewer.lines.some((line) => line.ruler && line.to)) return;
  get("#scale-mm").focus();
  get("#scale-mm").select();
}

const ruler = new Ruler();

/** Show the button of the ruler for images without spacing; forget the ruler of the previous image. */
function showRuler() {
  const possible = Boolean(current && current.size) && (!current.spacing || current.isMeasured);
  get("#set-scale").hidden = !possible;
  if (!possible && viewer.tool === ruler) useRuler(false);
  if (!possible) get("#scale-form").hidden = true;
}

function useRuler(on) {
  if (on && typeof tool !== "undefined" && tool) chooseTool(tool);
  viewer.useTool(on ? ruler : null);
  get("#set-scale").setAttribute("aria-pressed", on);
  get("#scale-hint").hidden = !on;
  get("#scale-hint").textContent = TEXT.scale_hint;
  if (on) get(".dm-stage").focus({ preventScroll: true }); // for the arrow keys
  if (!on) {
    viewer.lines = viewer.lines.filter((line) => !line.ruler);
    get("#scale-form").hidden = true;
    viewer.draw();
  }
}

/** Take the length of the drawn line, in mm, as the scale of this image. */
function setScale() {
  const [line] = viewer.lines.filter((each) => each.ruler), length = Number(get("#scale-mm").value);
  const pixels = line && line.to ? Math.hypot(line.to[0] - line.from[0], line.to[1] - line.from[1]) : 0;
  if (!(length > 0) || !(pixels >= 1) || !current) {
    get("#scale-hint").textContent = TEXT[pixels >= 1 ? "scale_no_length" : "scale_no_line"];
    return;
  }
  current.spacing = [length / pixels, length / pixels];
  current.isMeasured = true;
  viewer.spacing = current.spacing;
  useRuler(false);
  if (current.levels) outline();
}

get(".dm-stage").addEventListener("click", askLength); // a press of the mouse or a tap focuses the viewer after `end`
get("#set-scale").addEventListener("click", () => useRuler(viewer.tool !== ruler));
get("#scale-ok").addEventListener("click", setScale);
get("#scale-mm").addEventListener("keydown", (event) => event.key === "Enter" && setScale());
