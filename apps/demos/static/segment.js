// The tab Segment: the map of probabilities, its outline at a threshold, the measures and the download.

async function takeMap(picture, result) {
  const image = new Image();
  image.src = result.map;
  await image.decode();
  if (current !== picture) return;
  const canvas = document.createElement("canvas");
  const width = canvas.width = image.naturalWidth, height = canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const levels = new Uint8Array(width * height);
  for (let at = 0; at < levels.length; at++) levels[at] = pixels[4 * at];
  const anotherClass = picture.which !== undefined && picture.which !== result.which;
  Object.assign(picture, result, { levels, width, height, top: result.levels });
  if (picture.edits && picture.edits.length !== levels.length) picture.edits = picture.undo = grown = null;
  viewer.setMap(levels, width, height, result.levels);
  if (anotherClass) setThreshold(result.cut);
  for (const name of ["#view", "#opacity", "#wipe", "#compare"]) get(name).disabled = false;
  outline();
}

const threshold = () => Number(get("#threshold-number").dataset.valid);

/** Take a threshold; a value that is not a number in range leaves the last one in place. */
function setThreshold(value) {
  const number = Number(value);
  if (value === "" || !(number >= 0.01 && number <= 0.99)) return false;
  const rounded = Math.round(number * 200) / 200;
  get("#threshold-number").dataset.valid = rounded;
  get("#threshold").value = rounded;
  if (document.activeElement !== get("#threshold-number")) get("#threshold-number").value = rounded;
  return true;
}

/** Draw the outline and the numbers of the threshold that is set; takes a few milliseconds. */
function outline() {
  const picture = current;
  if (!picture || !picture.levels) return;
  const started = performance.now();
  const { levels, width, height } = picture, level = Math.round(threshold() * picture.top);
  const base = findRegions(levels, width, height, level, Number(get("#min-share").value) * width * height, get("#largest").checked);
  const drawn = picture.edits ? withEdits(picture, base, level) : levels;
  const map = picture.edits ? findRegions(drawn, width, height, level, 0, false) : base;
  const path = traceOutline(drawn, map, width, height, level);
  picture.drawn = { levels: picture.edits ? drawn : withoutRegions(levels, base, level), level };
  viewer.setOutline(path, map.regions.map((region, at) => ({ x: region.x + 0.5, y: region.y + 0.5, text: String(at + 1) })));
  const [wide, tall] = picture.size, pixelArea = (wide * tall) / (width * height);
  const areas = map.regions.map((region) => region.area * pixelArea);
  picture.regions = map.regions;
  picture.outlined = (picture.outlined || 0) + 1;
  const asks = !picture.exact || (picture.byRegion && !picture.isMeasured);
  if (picture.byRegion && !picture.isMeasured) picture.spacing = null;
  if (!areas.length) showRuler(); // else after the answer of the server
  showMeasures(picture, areas, !picture.exact);
  const message = get("#panel-segment .dm-result");
  message.innerHTML = "";
  if (!areas.length) {
    const values = { kind: picture.which, threshold: threshold().toFixed(2), highest: picture.highest.toFixed(2) };
    const div = document.createElement("div");
    div.className = "message no-lesion";
    div.textContent = map.count ? TEXT.left_out : write("no_lesion", values);
    message.append(div);
  }
  showTools();
  app.dataset.stepMs = (performance.now() - started).toFixed(1);
  describe();
  measureShape();
  clearTimeout(measuring);
  if (asks && areas.length) measuring = setTimeout(measure, 300);
}

let measuring = 0;

/** Ask for the exact areas of a picture that is larger than its map. */
async function measure(file = false) {
  const picture = current, value = threshold(), { outlined } = picture;
  const rules = { min_share: Number(get("#min-share").value), largest_only: get("#largest").checked };
  let answer;
  try {
    answer = await callServer("mask", { id: picture.id, key: picture.key, threshold: value, file, edits: editRuns(picture), ...rules });
  } catch (problem) {
    answer = { id: picture.id, error: box(TEXT.server_lost) };
  }
  if (!current || answer.id !== current.id) return null;
  if (answer.error) {
    get("#panel-segment .dm-result").innerHTML = answer.error;
    return null;
  }
  if (outlined === picture.outlined && answer.areas) {
    if (picture.byRegion && !picture.isMeasured) {
      picture.spacing = answer.spacing;
      showRuler();
      measureShape();
    }
    showMeasures(picture, answer.areas, false);
  }
  return answer;
}

function showMeasures(picture, areas, estimated) {
  const sum = areas.reduce((total, area) => total + area, 0), whole = picture.size[0] * picture.size[1];
  get("#measures").hidden = !areas.length;
  get("#download").disabled = !areas.length;
  get("#measures").classList.toggle("dm-estimated", estimated);
  get("#lesion-count").textContent = areas.length;
  get("#area-px").textContent = count(sum);
  get("#area-percent").textContent = ((100 * sum) / whole).toFixed(2);
  const [row, column] = picture.spacing || [0, 0];
  get("#area-mm-card").hidden = !picture.spacing;
  get("#area-mm").textContent = picture.spacing ? millimetres(sum * row * column) : "";
  get("#lesions").replaceChildren(...areas.slice(0, 20).map((area, at) => {
    const item = document.createElement("li"), button = document.createElement("button"), value = document.createElement("span");
    button.type = "button";
    button.textContent = write("region", { number: at + 1 });
    const size = picture.spacing ? `${millimetres(area * row * column)} mm²` : `${count(area)} px²`;
    value.textContent = `${size} · ${((100 * area) / whole).toFixed(2)}%`;
    button.append(value);
    button.addEventListener("click", () => {
      const region = picture.regions[at];
      if (!region) return;
      const x = picture.size[0] / picture.width, y = picture.size[1] / picture.height;
      viewer.focus(region.left * x, region.top * y, (region.right + 1) * x, (region.bottom + 1) * y);
    });
    item.append(button);
    return item;
  }));
}

async function download() {
  const picture = current;
  get("#download").disabled = true;
  const answer = await measure(true);
  if (current !== picture) return;
  get("#download").disabled = !picture.regions.length; // also without an answer: it can be tried again
  if (!answer || !answer.file) return;
  const bytes = Uint8Array.from(atob(answer.file), (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  link.download = `mask_${picture.number}${frameName(picture)}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

if (get("#threshold")) {
  setThreshold(get("#threshold-number").value);
  get("#threshold").addEventListener("input", (event) => setThreshold(event.target.value) && outline());
  get("#threshold-number").addEventListener("input", (event) => setThreshold(event.target.value) && outline());
  get("#threshold-number").addEventListener("blur", (event) => { event.target.value = threshold(); });
  for (const name of ["#min-share", "#largest"]) get(name).addEventListener("change", outline);
  get("#download").addEventListener("click", download);
}
