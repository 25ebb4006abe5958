// Regions of a probability map, by the rules of adapters/tasks/segment/lesions.py.

/** Label the pixels with at least `level`; pixels that touch at a corner belong to one region.
 * Returns {labels: Int32Array (0: none), regions: [{label, area, left, top, right, bottom, x, y}]}, the largest first. */
function findRegions(levels, width, height, level, minArea, largestOnly) {
  const labels = new Int32Array(width * height);
  const parent = [0];
  const root = (label) => {
    while (parent[label] !== label) label = parent[label] = parent[parent[label]];
    return label;
  };
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (levels[at] < level) continue;
      let label = x > 0 ? labels[at - 1] : 0;
      if (y > 0) {
        for (let dx = x > 0 ? -1 : 0; dx <= (x < width - 1 ? 1 : 0); dx++) {
          const above = labels[at - width + dx];
          if (above === 0) continue;
          if (label === 0) label = above;
          else if (label !== above) {
            const one = root(label), two = root(above);
            if (one < two) parent[two] = one; else parent[one] = two;
          }
        }
      }
      if (label === 0) {
        label = parent.length;
        parent.push(label);
      }
      labels[at] = label;
    }
  }
  const count = parent.length, place = new Int32Array(count), found = [];
  for (let label = 1; label < count; label++) {
    const first = root(label);
    if (first === label) {
      place[label] = found.length;
      found.push({ label, area: 0, left: width, top: height, right: -1, bottom: -1, x: 0, y: 0 });
    } else place[label] = place[first]; // the root of a region has its smallest label
  }
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (labels[at] === 0) continue;
      const region = found[place[labels[at]]];
      labels[at] = region.label;
      region.area++;
      region.x += x;
      region.y += y;
      if (x < region.left) region.left = x;
      if (x > region.right) region.right = x;
      if (y < region.top) region.top = y;
      region.bottom = y;
    }
  }
  found.sort((a, b) => b.area - a.area);
  let kept = found.filter((region) => region.area >= Math.max(1, minArea));
  if (largestOnly) kept = kept.slice(0, 1);
  const isKept = new Uint8Array(count);
  for (const region of kept) {
    isKept[region.label] = 1;
    region.x /= region.area;
    region.y /= region.area;
  }
  return { labels, isKept, regions: kept, found: found.length };
}

/** Trace the border of the kept regions as a path in pixels of the map, between the pixels (marching squares).
 * `level` is a threshold: the path runs where the interpolated levels cross level - 0.5. */
function traceOutline(levels, found, width, height, level) {
  const path = new Path2D(), edge = level - 0.5, { labels, isKept, regions } = found;
  if (!regions.length) return path;
  // The levels with a border around them, in which regions that are left out lie below the threshold.
  const wide = width + 2, field = new Int16Array(wide * (height + 2)).fill(level - 1);
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (const region of regions) {
    left = Math.min(left, region.left);
    top = Math.min(top, region.top);
    right = Math.max(right, region.right);
    bottom = Math.max(bottom, region.bottom);
  }
  for (let y = Math.max(0, top - 1); y <= Math.min(height - 1, bottom + 1); y++) {
    for (let x = Math.max(0, left - 1); x <= Math.min(width - 1, right + 1); x++) {
      const at = y * width + x, label = labels[at];
      if (label === 0 || isKept[label]) field[(y + 1) * wide + x + 1] = levels[at];
    }
  }
  const between = (a, b) => (edge - a) / (b - a);
  // Segments of each cell are joined into chains by their end points, so that the path can be filled.
  const starts = new Map();
  const key = (x, y) => Math.round(x * 64) * 131072 + Math.round(y * 64);
  for (let y = top - 1; y <= bottom; y++) {
    for (let x = left - 1; x <= right; x++) {
      const at = (y + 1) * wide + x + 1, a = field[at], b = field[at + 1], c = field[at + wide + 1], d = field[at + wide];
      const code = (a > edge ? 8 : 0) | (b > edge ? 4 : 0) | (c > edge ? 2 : 0) | (d > edge ? 1 : 0);
      if (code !== 0 && code !== 15) {
        const top = () => [x + between(a, b), y], bottom = () => [x + between(d, c), y + 1];
        const left = () => [x, y + between(a, d)], right = () => [x + 1, y + between(b, c)];
        // The inside lies to the right of each segment. Saddles are connected, as pixels are that touch at a corner.
        const segments = {
          1: [[bottom, left]], 2: [[right, bottom]], 3: [[right, left]], 4: [[top, right]],
          5: [[top, left], [bottom, right]], 6: [[top, bottom]], 7: [[top, left]], 8: [[left, top]],
          9: [[bottom, top]], 10: [[left, bottom], [right, top]], 11: [[right, top]], 12: [[left, right]],
          13: [[bottom, right]], 14: [[left, bottom]],
        }[code];
        for (const [from, to] of segments) {
          const p = from(), q = to(), k = key(p[0], p[1]);
          const list = starts.get(k);
          if (list) list.push([p, q]); else starts.set(k, [[p, q]]);
        }
      }
    }
  }
  for (const [first, list] of starts) {
    while (list.length) {
      let [p, q] = list.pop();
      path.moveTo(p[0] + 0.5, p[1] + 0.5);
      for (;;) {
        path.lineTo(q[0] + 0.5, q[1] + 0.5);
        const k = key(q[0], q[1]);
        if (k === first) break;
        const next = starts.get(k);
        if (!next || !next.length) break;
        q = next.pop()[1];
      }
      path.closePath();
    }
  }
  return path;
}
