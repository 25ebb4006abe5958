// The tab Explore: a picture beside earlier ones of the visit, with what the features of their patches hold; a map of the index.

const EARLIER = 5;
let visited = []; // [{key, image, number}], the newest first; the pictures stay in the page, their features on the server
let live = null; // the tiles of the mode "similarity"; their first image is the one in the viewer

/** Show the answer of the panel; called by `ask` for the picture in the viewer. */
function showExplore(picture, result) {
  live = null;
  const panel = get("#explore");
  if (result.mode === "map") placeStar(picture, result);
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
  const each = canvas.width / (panel.clientWidth || get(".dm-inspect").clientWidth); // pixels of the canvas for one of the page
  context.font = `600 ${10 * each}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  result.matches.map((match, at) => [match, at + 1]).reverse().forEach(([match, number]) => {
    const ends = [place(match[0], match[1], 0), place(match[2], match[3], 1)], hue = (183 + 137.5 * (number - 1)) % 360;
    for (const [colour, width] of [["#000000", 3], [`hsl(${hue} 95% 65%)`, 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * each;
      context.beginPath();
      context.moveTo(...ends[0]);
      context.lineTo(...ends[1]);
      context.stroke();
    }
    for (const end of ends) {
      context.beginPath();
      context.arc(...end, 8 * each, 0, 7);
      context.fillStyle = `hsl(${hue} 95% 65%)`;
      context.fill();
      context.strokeStyle = "#000000";
      context.lineWidth = each;
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

// ---- map of the index

const GRID = 24; // thumbnails of a request
let plane = null, mapped = null; // {method, rows, columns} of the map that is shown
let chosenPoints = [], shownThumbs = 0, pointed = -1, fetchingThumbs = false;
const thumbs = new Map(); // place on the map -> data URL, or null for a missing file; at most 500

const askServer = async (name, request) => {
  try {
    return await callServer(name, { id: newId(), ...request });
  } catch (problem) {
    return { error: TEXT.server_lost };
  }
};

function showMap(isShown) {
  if (!get("#map")) return;
  get("#map").hidden = !isShown;
  if (isShown) loadMap();
}

/** Load the points by the method that is chosen, unless they are there. */
async function loadMap() {
  const method = get("#map-method").value;
  if (!plane) plane = new MapPlane(get("#map-canvas"), pointAt, showChosen);
  if (mapped && mapped.method === method) return plane.draw();
  const status = get("#map-status");
  let answer;
  do {
    status.textContent = TEXT.map_computing;
    answer = await askServer("map_points", { method });
    if (answer.computing) await new Promise((resolve) => setTimeout(resolve, 500));
    if (get("#map").hidden || get("#map-method").value !== method) return;
  } while (answer.computing);
  if (!answer.points) {
    status.textContent = answer.error === TEXT.server_lost ? TEXT.server_lost : TEXT.map_failed;
    return;
  }
  const column = mapped ? get("#map-column").value : answer.chosen;
  mapped = { method, total: answer.total, rows: new Uint32Array(fromBase64(answer.rows).buffer), columns: {} };
  for (const [name, { names, groups }] of Object.entries(answer.columns)) mapped.columns[name] = { names, groups: fromBase64(groups) };
  plane.setPoints(Float32Array.from(new Uint16Array(fromBase64(answer.points).buffer), (value) => value / 65535));
  plane.setStar(null);
  get("#map-column").replaceChildren(...Object.keys(mapped.columns).map((name) => new Option(name, name)));
  if (column) get("#map-column").value = column;
  colourMap();
  showChosen([]);
  status.textContent = write("map_ready", { count: count(mapped.rows.length), total: count(mapped.total) });
  get("#map").dataset.ready = method;
  if (current && current.path) ask(["explore"]); // for its star
}

function colourMap() {
  const { names, groups } = mapped.columns[get("#map-column").value] || { names: [], groups: new Uint8Array(mapped.rows.length) };
  plane.setGroups(groups);
  listGroups(get("#map-legend"), plane, names, groups);
}

/** Show the place of the picture; an answer of another projection is left out. */
function placeStar(picture, result) {
  if (!plane || !mapped || mapped.method !== result.method) return;
  plane.setStar(result.star);
  get("#map").dataset.star = result.star ? picture.number : "";
}

/** Remove the place of a picture that is no longer shown. */
function clearStar() {
  if (!plane) return;
  plane.setStar(null);
  get("#map").dataset.star = "";
}

/** Load the thumbnails of places that are not here yet. */
async function loadThumbs(places) {
  const missing = places.filter((at) => !thumbs.has(at));
  if (!missing.length) return;
  const answer = await askServer("map_thumbnails", { places: missing });
  (answer.thumbnails || []).forEach((image, at) => thumbs.set(missing[at], image));
  while (thumbs.size > 500) thumbs.delete(thumbs.keys().next().value);
}

function thumbOf(at) {
  if (!thumbs.get(at)) {
    const text = document.createElement("span");
    text.textContent = thumbs.has(at) ? TEXT.map_missing : "…";
    return text;
  }
  const image = document.createElement("img");
  image.src = thumbs.get(at);
  image.alt = pointName(at);
  return image;
}

const pointName = (at) => write("map_point", { row: mapped.rows[at] });
const pointValues = (at) => Object.entries(mapped.columns).map(([name, { names, groups }]) => `${name}: ${names[groups[at]]}`);

/** Show the image under the pointer or the cross; its thumbnail follows when it is loaded. */
function pointAt(at, x, y) {
  const tip = get("#map-tip");
  pointed = at;
  tip.hidden = at < 0;
  if (at < 0) return;
  tip.replaceChildren(thumbOf(at), ...[pointName(at), ...pointValues(at)].map((text) => {
    const line = document.createElement("div");
    line.textContent = text;
    return line;
  }));
  tip.style.left = `${Math.max(Math.min(x + 14, plane.canvas.clientWidth - tip.offsetWidth - 4), 0)}px`;
  tip.style.top = `${Math.max(Math.min(y + 14, plane.canvas.clientHeight - tip.offsetHeight - 4), 0)}px`;
  if (!thumbs.has(at)) fetchPointed();
}

/** Load the thumbnail of the image that is pointed at; one request at a time, for the newest. */
async function fetchPointed() {
  if (fetchingThumbs) return;
  fetchingThumbs = true;
  while (pointed >= 0 && !thumbs.has(pointed)) {
    const at = pointed;
    await loadThumbs([at]);
    if (!thumbs.has(at)) break; // the server does not answer
    if (pointed === at) get("#map-tip").firstChild.replaceWith(thumbOf(at));
  }
  fetchingThumbs = false;
}

function showChosen(numbers) {
  chosenPoints = numbers;
  shownThumbs = 0;
  get("#map-grid").replaceChildren();
  get("#map-clear").disabled = get("#map-save").disabled = !numbers.length;
  get("#map-more").hidden = true;
  if (mapped) {
    const values = numbers.length === 1 ? [pointName(numbers[0]), ...pointValues(numbers[0])].join("; ") : "";
    const text = write("map_selected", { count: count(numbers.length), total: count(mapped.rows.length) });
    get("#map-status").textContent = values ? `${text} ${values}` : text;
  }
  if (numbers.length) showMore();
}

/** Add thumbnails of the selection to the grid. */
async function showMore() {
  const chosen = chosenPoints, places = chosen.slice(shownThumbs, shownThumbs + GRID);
  get("#map-more").hidden = true;
  await loadThumbs(places);
  if (chosen !== chosenPoints) return; // another selection
  shownThumbs += places.length;
  get("#map-grid").append(...places.map((at) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const column = mapped.columns[get("#map-column").value];
    caption.textContent = column ? column.names[column.groups[at]] : pointName(at);
    figure.className = "case";
    figure.title = [pointName(at), ...pointValues(at)].join(", ");
    figure.append(thumbOf(at), caption);
    return figure;
  }));
  get("#map-more").hidden = shownThumbs >= chosen.length;
}

if (get("#map")) {
  get("#map-method").addEventListener("change", loadMap);
  get("#map-column").addEventListener("change", colourMap);
  get("#map-fit").addEventListener("click", () => plane.fit());
  get("#map-all").addEventListener("click", () => plane.selectVisible());
  get("#map-clear").addEventListener("click", () => plane.clear());
  get("#map-more").addEventListener("click", showMore);
  get("#map-move").addEventListener("click", (event) => {
    plane.moving = !plane.moving;
    event.target.setAttribute("aria-pressed", plane.moving);
    get(".map-plane").classList.toggle("map-moving", plane.moving);
  });
  get("#map-save").addEventListener("click", async () => {
    const answer = await askServer("map_save", { places: chosenPoints });
    if (answer.csv) saveText(answer.csv, answer.name);
    else get("#map-status").textContent = TEXT.server_lost;
  });
}

if (get("#explore-mode")) {
  const stage = get(".dm-stage"), onlyPca = get("#explore-foreground").closest("label");
  const follow = () => {
    onlyPca.hidden = get("#explore-mode").value !== "pca";
    showMap(get("#explore-mode").value === "map");
  };
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
