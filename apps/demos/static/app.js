// The page: opens a picture, asks the server, and shows the answer in the viewer and in the tabs.

const app = element.querySelector(".dm-app");
const get = (selector) => app.querySelector(selector);
const all = (selector) => [...app.querySelectorAll(selector)];
const write = (name, values) => TEXT[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
const count = (number) => Math.round(number).toLocaleString("en-US");
const millimetres = (area) => (area < 100 ? area.toPrecision(3) : count(area));
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

let current = null; // {id, path, number, levels, ...} of the picture that is shown; answers for another id are dropped
let opened = 0;
const visit = newId();
const viewer = new Viewer(get(".dm-stage"), get("#canvas"), showZoom);

// ---- opening a picture

/** Forget the previous picture everywhere, before anything is known of the next one. */
function clearAll(state) {
  current = null;
  app.dataset.state = state;
  viewer.clear();
  for (const result of all(".dm-result")) result.innerHTML = "";
  clearTrust();
  if (comparison.open) comparison.close();
  for (const name of ["#view", "#opacity", "#wipe", "#compare", "#download"]) if (get(name)) get(name).disabled = true;
  if (get("#measures")) {
    get("#measures").hidden = true;
    for (const name of ["#lesion-count", "#area-px", "#area-percent", "#area-mm", "#lesions"]) get(name).textContent = "";
  }
  get(".dm-problem").textContent = "";
  get("#status").textContent = "";
  get("#canvas").setAttribute("aria-label", TEXT.waiting);
  clearTimeout(measuring);
  if (get("#saved")) get("#saved").textContent = "";
  showTools();
  showRuler();
  measureShape();
}

function fail(text) {
  clearAll("problem");
  get(".dm-problem").innerHTML = text;
}

const box = (text) => {
  const div = document.createElement("div");
  div.className = "message error";
  div.textContent = text;
  return div.outerHTML;
};

/** Send a file and return its path on the server. It does not get its own name, which may identify a patient. */
async function sendFile(file, name) {
  if (file.size > 64 * 2 ** 20) throw new Error(TEXT.too_large);
  try {
    return (await upload(new File([file], name, { type: "application/octet-stream" }))).path;
  } catch (problem) {
    throw new Error(/size/i.test(String(problem)) ? TEXT.too_large : TEXT.upload_failed);
  }
}

async function open(source) {
  clearAll("busy");
  const picture = { id: newId(), number: ++opened, held: {} };
  current = picture;
  let path = source;
  if (source instanceof File) {
    try {
      path = await sendFile(source, "image");
    } catch (problem) {
      if (current === picture) fail(box(problem.message));
      return;
    }
    if (current !== picture) return;
  }
  picture.path = path;
  await ask(null);
}

/** Ask for the results of some panels, or of all. */
async function ask(panels) {
  const picture = current;
  nameEarlier(picture.number);
  const settings = {};
  for (const panel of all("[data-panel]")) {
    const values = settings[panel.dataset.panel] = {};
    for (const input of panel.querySelectorAll("[data-setting]")) {
      values[input.dataset.setting] = input.type === "checkbox" ? input.checked : input.value;
    }
  }
  let answer;
  try {
    answer = await server.look({ id: picture.id, visit, path: picture.path, panels, settings });
  } catch (problem) {
    answer = { id: picture.id, error: box(TEXT.server_lost) };
  }
  if (!current || answer.id !== current.id) return; // of a picture that is no longer shown
  if (answer.error) return fail(answer.error);
  if (!answer.panels) return;
  if (answer.preview) {
    const image = new Image();
    image.src = answer.preview;
    await image.decode();
    if (!current || answer.id !== current.id) return;
    picture.preview = answer.preview;
    picture.size = answer.size;
    picture.spacing = answer.spacing;
    viewer.show(image, answer.size, answer.spacing);
    app.dataset.state = "shown";
    showRuler();
    get("#compare").disabled = get("#wipe").disabled = get("#view").disabled = true;
  }
  for (const [name, result] of Object.entries(answer.panels)) {
    await deliver(picture, name, result);
  }
  describe();
}

// ---- segmentation

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
  if (!picture.exact && areas.length) measuring = setTimeout(measure, 300);
}

let measuring = 0;

/** Ask for the exact areas of a picture that is larger than its map. */
async function measure(file = false) {
  const picture = current, value = threshold(), { outlined } = picture;
  const rules = { min_share: Number(get("#min-share").value), largest_only: get("#largest").checked };
  let answer;
  try {
    answer = await server.mask({ id: picture.id, key: picture.key, threshold: value, file, edits: editRuns(picture), ...rules });
  } catch (problem) {
    answer = { id: picture.id, error: box(TEXT.server_lost) };
  }
  if (!current || answer.id !== current.id) return null;
  if (answer.error) {
    get("#panel-segment .dm-result").innerHTML = answer.error;
    return null;
  }
  if (outlined === picture.outlined && answer.areas) showMeasures(picture, answer.areas, false);
  return answer;
}

function showMeasures(picture, areas, estimated) {
  const sum = areas.reduce((total, area) => total + area, 0), whole = picture.size[0] * picture.size[1];
  get("#measures").hidden = !areas.length;
  get("#download").disabled = !areas.length;
  get("#measures").classList.toggle("dm-estimated", estimated);
  get("#lesion-count").textContent = areas.length;
  get("#area-px").textContent = count(sum);
  get("#area-percent").textContent = ((100 * sum) / whole).toFixed(1);
  const [row, column] = picture.spacing || [0, 0];
  get("#area-mm-card").hidden = !picture.spacing;
  get("#area-mm").textContent = picture.spacing ? millimetres(sum * row * column) : "";
  get("#lesions").replaceChildren(...areas.slice(0, 20).map((area, at) => {
    const item = document.createElement("li"), button = document.createElement("button"), value = document.createElement("span");
    button.type = "button";
    button.textContent = write("region", { number: at + 1 });
    const size = picture.spacing ? `${millimetres(area * row * column)} mm²` : `${count(area)} px`;
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
  if (!answer || !answer.file || current !== picture) return;
  get("#download").disabled = false;
  const bytes = Uint8Array.from(atob(answer.file), (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  link.download = `mask_${picture.number}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- state of the viewer in words

function describe() {
  if (!current || !current.size) return;
  const values = { width: current.size[0], height: current.size[1], count: (current.regions || []).length };
  get("#canvas").setAttribute("aria-label", write("picture_label", values));
}

function showZoom(view) {
  app.dataset.mode = view.heat ? view.mode : "plain";
  if (!view.picture) return;
  const size = write("size", { width: count(view.size[0]), height: count(view.size[1]) });
  get("#status").textContent = `${size} · ${write("zoom", { percent: Math.round(100 * view.scale()) })}`;
}

// ---- events

/** Open the first of several files; where decisions are saved, the others wait for "next case". */
function openFirst(files) {
  const [first, ...waiting] = [...files];
  if (get(".dm-correct")) queue.push(...waiting);
  if (first) open(first);
}

get("input[type=file]").addEventListener("change", (event) => {
  openFirst(event.target.files);
  event.target.value = ""; // so that the same file can be opened again
});
app.addEventListener("dragover", (event) => {
  event.preventDefault();
  app.classList.add("dm-over");
});
app.addEventListener("dragleave", (event) => {
  if (!app.contains(event.relatedTarget)) app.classList.remove("dm-over");
});
app.addEventListener("drop", (event) => {
  event.preventDefault();
  app.classList.remove("dm-over");
  openFirst(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])][0];
  if (file) open(file);
});
for (const button of all("[data-example]")) button.addEventListener("click", () => open(button.dataset.example));
for (const input of all("[data-asks]")) {
  input.addEventListener("change", () => current && current.path && ask([input.closest("[data-panel]").dataset.panel]));
}
for (const output of all("output[for]")) {
  const input = get(`#${output.htmlFor}`), show = () => { output.textContent = input.value; };
  input.addEventListener("input", show);
  show();
}

for (const input of all("input[name=dm-view]")) {
  input.addEventListener("change", () => {
    viewer.mode = input.value;
    viewer.draw();
  });
}
get("#opacity").addEventListener("input", (event) => {
  viewer.opacity = event.target.value / 100;
  viewer.draw();
});
get("#wipe").addEventListener("input", (event) => {
  viewer.wipe = event.target.value / 100;
  viewer.draw();
});
const compare = (on) => {
  viewer.comparing = on;
  viewer.draw();
};
for (const name of ["pointerdown", "pointerup", "pointerleave", "pointercancel", "blur"]) {
  get("#compare").addEventListener(name, () => compare(name === "pointerdown"));
}
for (const name of ["keydown", "keyup"]) {
  get("#compare").addEventListener(name, (event) => {
    if (event.key === " " || event.key === "Enter") compare(name === "keydown");
  });
  get(".dm-stage").addEventListener(name, (event) => {
    if (event.key.toLowerCase() === "c" && !event.ctrlKey && !event.metaKey) compare(name === "keydown");
  });
}
get("#zoom-in").addEventListener("click", () => viewer.zoomBy(STEP));
get("#zoom-out").addEventListener("click", () => viewer.zoomBy(1 / STEP));
get("#fit").addEventListener("click", () => viewer.fit());

if (get("#threshold")) {
  setThreshold(get("#threshold-number").value);
  get("#threshold").addEventListener("input", (event) => setThreshold(event.target.value) && outline());
  get("#threshold-number").addEventListener("input", (event) => setThreshold(event.target.value) && outline());
  get("#threshold-number").addEventListener("blur", (event) => { event.target.value = threshold(); });
  for (const name of ["#min-share", "#largest"]) get(name).addEventListener("change", outline);
  get("#download").addEventListener("click", download);
}

const tabs = all("[role=tab]");
const choose = (chosen, focus) => {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    get(`#${tab.getAttribute("aria-controls")}`).hidden = tab !== chosen;
  }
  if (focus) chosen.focus();
};
tabs.forEach((tab, at) => {
  tab.addEventListener("click", () => choose(tab, false));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(tabs[(to + tabs.length) % tabs.length], true);
  });
});

