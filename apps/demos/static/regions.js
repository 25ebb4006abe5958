// Regions of a probability map, by the rules of adapters/tasks/segment/lesions.py.

/** Find the regions of pixels with at least `level`; pixels that touch at a corner belong to one region.
 * Returns {regions, removed, count}: regions that count, the largest first, as {area, left, top, right, bottom, x, y, runs}; runs
 * of pixels of the others, [start, end, ...]; and the number of all. Rows are taken as runs of pixels, which are few. */
function findRegions(levels, width, height, level, minArea, largestOnly) {
  const starts = [], ends = [], parent = []; // runs [start, end) as positions in the map
  const root = (run) => {
    while (parent[run] !== run) run = parent[run] = parent[parent[run]];
    return run;
  };
  let before = 0, first = 0; // runs of the row above: before to first
  for (let y = 0; y < height; y++) {
    const from = y * width, to = from + width, begin = starts.length;
    for (let at = from; at < to; at++) {
      if (levels[at] < level) continue;
      const start = at;
      while (++at < to && levels[at] >= level);
      starts.push(start);
      ends.push(at);
      parent.push(parent.length);
    }
    for (let run = begin, above = before; run < starts.length; run++) {
      const left = starts[run] - width - 1, right = ends[run] - width; // touching runs overlap left to right
      while (above < first && ends[above] <= left) above++;
      for (let other = above; other < first && starts[other] <= right; other++) {
        const here = root(run), over = root(other);
        if (here < over) parent[over] = here; else parent[here] = over;
      }
    }
    before = begin;
    first = starts.length;
  }
  const regionOf = new Array(starts.length), all = [];
  for (let run = 0; run < starts.length; run++) {
    const label = root(run); // the first run of its region
    if (label === run) {
      regionOf[run] = { area: 0, left: width, top: Math.floor(starts[run] / width), right: -1, bottom: -1, x: 0, y: 0, runs: [], kept: false };
      all.push(regionOf[run]);
    } else regionOf[run] = regionOf[label];
    const region = regionOf[run], y = Math.floor(starts[run] / width), left = starts[run] - y * width;
    const length = ends[run] - starts[run];
    region.area += length;
    region.runs.push(starts[run], ends[run]);
    region.x += length * (left + (length - 1) / 2);
    region.y += length * y;
    region.left = Math.min(region.left, left);
    region.right = Math.max(region.right, left + length - 1);
    region.bottom = y;
  }
  all.sort((a, b) => b.area - a.area);
  let regions = all.filter((region) => region.area >= Math.max(1, minArea));
  if (largestOnly) regions = regions.slice(0, 1);
  for (const region of regions) {
    region.kept = true;
    region.x /= region.area;
    region.y /= region.area;
  }
  const removed = [];
  for (let run = 0; run < starts.length; run++) if (!regionOf[run].kept) removed.push(starts[run], ends[run]);
  return { regions, removed, count: all.length };
}

const TOP = 0, RIGHT = 1, BOTTOM = 2, LEFT = 3;
// Sides of a cell that the border joins, from and to, for the corners that are inside: 8 upper left, 4 upper right, 2 lower
// right, 1 lower left. The inside lies to one side of all; inside corners across a cell are joined.
const SEGMENTS = [
  [], [BOTTOM, LEFT], [RIGHT, BOTTOM], [RIGHT, LEFT], [TOP, RIGHT], [TOP, LEFT, BOTTOM, RIGHT], [TOP, BOTTOM], [TOP, LEFT],
  [LEFT, TOP], [BOTTOM, TOP], [LEFT, BOTTOM, RIGHT, TOP], [RIGHT, TOP], [LEFT, RIGHT], [BOTTOM, RIGHT], [LEFT, BOTTOM], [],
];

/** Trace the border of the kept regions as a path in pixels of the map, between the pixels (marching squares).
 * `level` is a threshold: the path runs where the interpolated levels cross level - 0.5. */
function traceOutline(levels, { regions, removed }, width, height, level) {
  const path = new Path2D(), edge = level - 0.5;
  if (!regions.length) return path;
  // The levels with a border around them, in which regions that are left out lie below the threshold.
  const wide = width + 2, field = new Uint8Array(wide * (height + 2)).fill(level - 1);
  for (let y = 0; y < height; y++) field.set(levels.subarray(y * width, (y + 1) * width), (y + 1) * wide + 1);
  for (let run = 0; run < removed.length; run += 2) {
    const shift = (Math.floor(removed[run] / width) + 1) * wide + 1 - Math.floor(removed[run] / width) * width;
    field.fill(level - 1, removed[run] + shift, removed[run + 1] + shift);
  }
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (const region of regions) {
    left = Math.min(left, region.left);
    top = Math.min(top, region.top);
    right = Math.max(right, region.right);
    bottom = Math.max(bottom, region.bottom);
  }
  const between = (from, to) => (edge - field[from]) / (field[to] - field[from]);
  // A point of the border: x, y, and the number of the edge between two pixels on which it lies.
  const crossing = (side, x, y, at) => {
    if (side === TOP) return [x + between(at, at + 1), y, 2 * at];
    if (side === BOTTOM) return [x + between(at + wide, at + wide + 1), y + 1, 2 * (at + wide)];
    if (side === LEFT) return [x, y + between(at, at + wide), 2 * at + 1];
    return [x + 1, y + between(at + 1, at + wide + 1), 2 * (at + 1) + 1];
  };
  const next = new Map(); // edge -> the point that follows
  for (let y = top - 1; y <= bottom; y++) {
    let at = (y + 1) * wide + left;
    let a = field[at] >= level, d = field[at + wide] >= level;
    for (let x = left - 1; x <= right; x++, at++) {
      const b = field[at + 1] >= level, c = field[at + wide + 1] >= level;
      if (a !== b || b !== c || c !== d) {
        const segments = SEGMENTS[(a ? 8 : 0) | (b ? 4 : 0) | (c ? 2 : 0) | (d ? 1 : 0)];
        for (let side = 0; side < segments.length; side += 2) {
          next.set(crossing(segments[side], x, y, at)[2], crossing(segments[side + 1], x, y, at));
        }
      }
      a = b;
      d = c;
    }
  }
  for (const [first, point] of next) {
    path.moveTo(point[0] + 0.5, point[1] + 0.5);
    next.delete(first);
    for (let at = point[2]; at !== first;) {
      const following = next.get(at);
      next.delete(at);
      path.lineTo(following[0] + 0.5, following[1] + 0.5);
      at = following[2];
    }
    path.closePath();
  }
  return path;
}
