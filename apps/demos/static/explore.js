// The tab Explore: a picture beside earlier ones of the visit, with what the features of their patches hold.

const EARLIER = 5;
let visited = []; // [{key, image, number}], the newest first; the pictures stay in the page, their features on the server
let live = null; // the tiles of the mode "similarity"; their first image is the one in the viewer

/** Show the answer of the panel; called by `ask` for the picture in the viewer. */
function showExplore(picture, result) {
  live = null;
  const panel = get("#explore");
  const earlier = result.earlier.map((key) => visited.find((each) => each.key === key)).filter(Boolean);
  const shown = [{ image: viewer.picture, number: picture.number }, ...earlier];
  if (result.mode !== "none") panel.replaceChildren();
  const draw = { similarity: exploreSimilarity, pca: explorePca, attention: exploreAttention, match: exploreMatch }[result.mode];
  if (draw) draw(panel, result, shown);
  visited = visited.filter((each) => each.number !== picture.number);
  visited.unshift({ key: result.key, image: viewer.picture, number: picture.number });
  visited.length = Math.min(visited.length, EARLIER + 1);
}

/** Name the earlier pictures to the server, before a picture is asked for. */
function nameEarlier(number) {
  const earlier = visited.filter((each) => each.number !== number).slice(0, EARLIER);
  if (get("#explore-earlier")) get("#explore-earlier").value = JSON.stringify(earlier.map((each) => each.key));
}

function exploreTile(image, caption, overlay) {
  const figure = document.createElement("figure"), tile = document.createElement("div");
  const text = document.createElement("figcaption"), copy = document.createElement("img");
  figure.className = "case";
  tile.className = "ex-tile";
  copy.src = image.src;
  copy.alt = caption;
  text.textContent = caption;
  tile.append(copy, overlay || document.createElement("canvas"));
  figure.append(tile, text);
  return figure;
}

function exploreGrid(panel, figures, hint) {
  const grid = document.createElement("div"), note = document.createElement("p");
  grid.className = "ex-grid";
  grid.append(...figures);
  note.className = "dm-hint";
  note.id = "explore-hint";
  note.textContent = hint;
  panel.append(grid, note);
  return note;
}

const pictureName = (each, at) => write(at ? "explore_earlier" : "explore_this", { number: each.number });

function exploreSimilarity(panel, result, shown) {
  const { rows, columns, components } = result;
  const images = result.features.map((text) => takeFeatures(text, rows, columns, components));
  const figures = shown.map((each, at) => exploreTile(each.image, pictureName(each, at)));
  const note = exploreGrid(panel, figures, "");
  const tiles = figures.map((figure) => figure.firstChild);
  tiles.forEach((tile, at) => {
    tile.append(document.createElement("i"));
    tile.tabIndex = 0;
    tile.setAttribute("role", "application");
    tile.setAttribute("aria-label", write("explore_tile", { name: pictureName(shown[at], at) }));
  });
  const middle = Math.floor(rows / 2) * columns + Math.floor(columns / 2);
  live = new LiveTiles(tiles, images, colourOf, middle, (chosen, low, high) => {
    note.textContent = write("explore_range", { low: low.toFixed(2), high: high.toFixed(2) });
  });
}

function mapImage(source) {
  const map = document.createElement("img");
  map.src = source;
  map.alt = "";
  map.className = "ex-map";
  return map;
}

function explorePca(panel, result, shown) {
  const figures = shown.map((each, at) => exploreTile(each.image, pictureName(each, at), mapImage(result.maps[at])));
  exploreGrid(panel, figures, TEXT.explore_pca_hint);
}

function exploreAttention(panel, result, shown) {
  const percent = (share) => `${Math.round(100 * share)}%`;
  const figures = result.heads.map((head, at) => {
    const values = { number: at + 1, patches: percent(head.patches), mask: percent(head.mask) };
    const registers = result.registers ? write("explore_registers", { share: percent(head.registers) }) : "";
    return exploreTile(shown[0].image, `${write("explore_head", values)} ${registers}`.trim(), mapImage(head.map));
  });
  exploreGrid(panel, figures, TEXT.explore_attention_hint);
}

function exploreMatch(panel, result, shown) {
  if (!result.matches || shown.length < 2) return exploreGrid(panel, [], TEXT.explore_match_alone);
  const canvas = document.createElement("canvas"), gap = 12, height = 360;
  const widths = shown.slice(0, 2).map(({ image }) => (image.naturalWidth / image.naturalHeight) * height);
  const { rows, columns } = result;
  canvas.width = widths[0] + gap + widths[1];
  canvas.height = height;
  canvas.className = "ex-match";
  canvas.setAttribute("role", "img");
  const context = canvas.getContext("2d"), left = [0, widths[0] + gap];
  shown.slice(0, 2).forEach(({ image }, at) => context.drawImage(image, left[at], 0, widths[at], height));
  const place = (row, column, at) => [left[at] + ((column + 0.5) * widths[at]) / columns, ((row + 0.5) * height) / rows];
  context.font = "600 14px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  result.matches.map((match, at) => [match, at + 1]).reverse().forEach(([match, number]) => {
    const ends = [place(match[0], match[1], 0), place(match[2], match[3], 1)], hue = (183 + 137.5 * (number - 1)) % 360;
    for (const [colour, width] of [["#000000", 4], [`hsl(${hue} 95% 65%)`, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...ends[0]);
      context.lineTo(...ends[1]);
      context.stroke();
    }
    for (const end of ends) {
      context.beginPath();
      context.arc(...end, 11, 0, 7);
      context.fillStyle = `hsl(${hue} 95% 65%)`;
      context.fill();
      context.strokeStyle = "#000000";
      context.stroke();
      context.fillStyle = "#000000";
      context.fillText(String(number), ...end);
    }
  });
  const values = { count: result.matches.length, similarity: result.min_similarity };
  const hint = write(result.matches.length ? "explore_match_hint" : "explore_no_match", values);
  canvas.setAttribute("aria-label", hint);
  panel.append(canvas);
  exploreGrid(panel, [], hint);
}

if (get("#explore-mode")) {
  const stage = get(".dm-stage"), onlyPca = get("#explore-foreground").closest("label");
  const follow = () => { onlyPca.hidden = get("#explore-mode").value !== "pca"; };
  get("#explore-mode").addEventListener("change", follow);
  follow();
  stage.addEventListener("pointermove", (event) => {
    if (!live || !viewer.picture || get("#panel-explore").hidden) return;
    const box = stage.getBoundingClientRect(), origin = viewer.origin(), scale = viewer.scale(), { rows, columns } = live.images[0];
    const x = (event.clientX - box.left - origin[0]) / (viewer.size[0] * scale);
    const y = (event.clientY - box.top - origin[1]) / (viewer.size[1] * scale);
    if (x >= 0 && x < 1 && y >= 0 && y < 1) live.choose(0, patchAt(x, y, rows, columns));
  });
  stage.addEventListener("pointerleave", () => live && live.leave());
}
