// Cosine similarity of patches from int8 features, and tiles that show it live; for the demo and for pages.

/** Take the features of an image: `text` is Base64 of int8 values, `components` for each patch, row by row. */
function takeFeatures(text, rows, columns, components) {
  const values = new Int8Array(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
  const norms = new Float32Array(rows * columns);
  for (let patch = 0; patch < norms.length; patch++) {
    let sum = 0;
    for (let at = patch * components; at < (patch + 1) * components; at++) sum += values[at] * values[at];
    norms[patch] = Math.sqrt(sum) || 1;
  }
  return { values, norms, rows, columns, components };
}

/** Return the similarity of patch number `patch` of the image `query` to all patches of `image`, Float32Array. */
function similarityTo(query, patch, image) {
  const { components } = query, start = patch * components, result = new Float32Array(image.norms.length);
  for (let other = 0, at = 0; other < result.length; other++) {
    let sum = 0;
    for (let k = start; k < start + components; k++, at++) sum += query.values[k] * image.values[at];
    result[other] = sum / (query.norms[patch] * image.norms[other]);
  }
  return result;
}

/** Number of the patch at (x, y), both in 0 to 1 of the image. */
function patchAt(x, y, rows, columns) {
  const row = Math.min(Math.max(Math.floor(y * rows), 0), rows - 1);
  return row * columns + Math.min(Math.max(Math.floor(x * columns), 0), columns - 1);
}

/** Paint a map into a canvas of one pixel for each patch; `colour` maps 0 to 1 to [red, green, blue]. */
function paintMap(canvas, values, rows, columns, low, high, colour) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let at = 0; at < values.length; at++) {
    const place = Math.min(Math.max((values[at] - low) / Math.max(high - low, 1e-6), 0), 1);
    image.data.set([...colour(place), 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
}

/** Tiles that show the similarity to the patch under the pointer, or to one chosen by click or arrow keys. */
class LiveTiles {
  /**
   * `tiles` are elements with a <canvas> over the image and an <i> for the frame; `images` are from takeFeatures;
   * `onchange` gets ({image, patch}, lowest, highest, highest of each image).
   */
  constructor(tiles, images, colour, patch, onchange) {
    Object.assign(this, { tiles, images, colour, onchange, waiting: 0 });
    this.fixed = this.chosen = { image: 0, patch };
    tiles.forEach((tile, at) => this.listen(tile, at));
    this.show();
  }

  choose(image, patch, keep = false) {
    const isNew = this.chosen.image !== image || this.chosen.patch !== patch;
    if (isNew) this.chosen = { image, patch };
    if (keep) this.fixed = this.chosen;
    if (isNew) this.waiting = this.waiting || requestAnimationFrame(() => this.show());
  }

  leave() {
    this.choose(this.fixed.image, this.fixed.patch);
  }

  show() {
    this.waiting = 0;
    const { image, patch } = this.chosen;
    const maps = this.images.map((each) => similarityTo(this.images[image], patch, each));
    const highest = maps.map((map) => map.reduce((a, b) => Math.max(a, b), -1));
    const low = maps.reduce((least, map) => map.reduce((a, b) => Math.min(a, b), least), 1), high = Math.max(...highest);
    this.tiles.forEach((tile, at) => {
      const { rows, columns } = this.images[at], frame = tile.querySelector("i");
      paintMap(tile.querySelector("canvas"), maps[at], rows, columns, low, high, this.colour);
      frame.hidden = at !== image;
      Object.assign(frame.style, {
        left: `${(100 * (patch % columns)) / columns}%`, top: `${(100 * Math.floor(patch / columns)) / rows}%`,
        width: `${100 / columns}%`, height: `${100 / rows}%`,
      });
      tile.dataset.highest = highest[at].toFixed(3);
    });
    this.onchange(this.chosen, low, high, highest);
  }

  listen(tile, at) {
    const { rows, columns } = this.images[at];
    const under = (event) => {
      const box = tile.getBoundingClientRect();
      return patchAt((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, rows, columns);
    };
    tile.addEventListener("pointermove", (event) => this.choose(at, under(event)));
    tile.addEventListener("pointerleave", () => this.leave());
    tile.addEventListener("click", (event) => this.choose(at, under(event), true));
    tile.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const from = this.chosen.image === at ? this.chosen.patch : 0;
      const row = Math.min(Math.max(Math.floor(from / columns) + step[0], 0), rows - 1);
      const column = Math.min(Math.max((from % columns) + step[1], 0), columns - 1);
      this.choose(at, row * columns + column, true);
    });
  }
}
