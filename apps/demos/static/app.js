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
const ZOOMS = ["#zoom-out", "#fit", "#zoom-in"];
const visit = newId();
const viewer = new Viewer(get(".dm-stage"), get("#canvas"), showZoom);

// ---- opening a picture

/** Forget the previous picture everywhere, before anything is known of the next one. */
function clearAll(state) {
  current = null;
  app.dataset.state = state;
  placeExamples();
  viewer.clear();
  for (const result of all(".dm-result")) result.innerHTML = "";
  for (const panel of all("[data-panel]")) markOld(panel, false);
  clearTrust();
  showWindow(null);
  clearStar();
  if (comparison.open) comparison.close();
  for (const name of ["#view", "#opacity", "#wipe", "#compare", "#download", ...ZOOMS]) if (get(name)) get(name).disabled = true;
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
  showFrames(null);
  const picture = { id: newId(), number: ++opened, held: {}, frame: 0 };
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

/** Call a function of the server. Without a connection Gradio returns undefined, which is a failure here. */
async function callServer(name, request) {
  const answer = await server[name](request);
  if (!answer) throw new Error(TEXT.server_lost);
  return answer;
}

/** Show an error above the results of panels. They stay as they are, and so do the picture and its corrections. */
function showRefusal(names, text) {
  for (const name of names) {
    const result = get(`#panel-${name} .dm-result`), refusal = document.createElement("div");
    if (!result) continue;
    for (const earlier of result.querySelectorAll(".dm-refusal")) earlier.remove();
    refusal.className = "dm-refusal";
    refusal.innerHTML = text;
    result.prepend(refusal);
  }
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
    answer = await callServer("look", { id: picture.id, visit, path: picture.path, frame: picture.frame, panels, settings });
  } catch (problem) {
    answer = { id: picture.id, error: box(panels ? TEXT.server_lost_setting : TEXT.server_lost) };
  }
  if (!current || answer.id !== current.id) return; // of a picture that is no longer shown
  if (answer.error) {
    if (panels || picture.size) showRefusal(panels || Object.keys(settings), answer.error);
    else fail(answer.error);
    return;
  }
  if (!answer.panels || answer.frame !== picture.frame) return;
  if (answer.preview) {
    const image = new Image();
    image.src = answer.preview;
    await image.decode();
    if (!current || answer.id !== current.id) return;
    picture.preview = answer.preview;
    picture.size = answer.size;
    picture.byRegion = answer.by_region; // then the server knows the spacing of a mask
    picture.spacing = answer.by_region ? null : answer.spacing;
    viewer.show(image, answer.size, answer.spacing, picture.view);
    for (const name of ZOOMS) get(name).disabled = false;
    app.dataset.state = "shown";
    placeExamples();
    showFrames(picture, answer);
    if (answer.has_values) askValues(picture);
    showRuler();
    get("#compare").disabled = get("#wipe").disabled = get("#view").disabled = true;
  }
  for (const [name, result] of Object.entries(answer.panels)) {
    if (current !== picture) return;
    await deliver(picture, name, result);
    picture.answered = { ...picture.answered, [name]: settings[name] };
  }
  describe();
}

// ---- state of the viewer in words

function describe() {
  if (!current || !current.size) return;
  const values = { width: current.size[0], height: current.size[1], count: (current.regions || []).length };
  const frame = current.frames > 1 ? write("frame_of", { frame: current.frame + 1, frames: current.frames }) : "";
  get("#canvas").setAttribute("aria-label", [write("picture_label", values), frame].filter(Boolean).join(". "));
}

function showZoom(view) {
  app.dataset.mode = view.heat ? view.mode : "plain";
  if (!view.picture) return;
  const size = write("size", { width: count(view.size[0]), height: count(view.size[1]) });
  get("#status").textContent = `${size} · ${write("zoom", { percent: Math.round(100 * view.scale()) })}`;
}

// ---- events

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
get(".dm-empty").addEventListener("click", () => get("input[type=file]").click());
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])][0];
  if (file) openCase(null, file);
});
for (const button of all("[data-example]")) button.addEventListener("click", () => openCase(null, button.dataset.example));
/** Mark the results of a panel as those of earlier settings, or remove the mark. */
function markOld(panel, isOld) {
  for (const part of panel.querySelectorAll(".dm-result, .dm-state, #measures")) {
    if (isOld) part.setAttribute("aria-busy", true);
    else part.removeAttribute("aria-busy");
  }
}

let restoring = false; // the settings of the results that are shown are put back, and not asked for

/** Put back the settings of the results that are shown, after other settings had no answer. */
function restoreSettings(panel, answered) {
  restoring = true;
  for (const input of answered ? panel.querySelectorAll("[data-asks]") : []) {
    const value = answered[input.dataset.setting], name = input.type === "checkbox" ? "checked" : "value";
    if (input[name] === value) continue;
    input[name] = value;
    for (const event of ["input", "change"]) input.dispatchEvent(new Event(event));
  }
  restoring = false;
}

/** Ask for a panel again, for other settings; its results so far are marked as old until the answer is here. */
async function askAgain(panel) {
  const picture = current, name = panel.dataset.panel;
  picture.asked = { ...picture.asked, [name]: (picture.asked?.[name] || 0) + 1 };
  markOld(panel, true);
  try {
    await ask([name]);
  } catch (problem) {
    console.error(problem);
    if (current === picture) showRefusal([name], box(TEXT.server_lost_setting));
  } finally {
    if (!--picture.asked[name] && current === picture) {
      markOld(panel, false);
      restoreSettings(panel, picture.answered?.[name]);
    }
  }
}
for (const input of all("[data-asks]")) {
  input.addEventListener("change", () => {
    if (current && current.path && !resting && !restoring) askAgain(input.closest("[data-panel]"));
  });
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

const narrowScreen = matchMedia("(max-width: 860px)");

/** Move nodes by a function; the one that has the focus keeps it. */
function moveWithFocus(move) {
  const focused = document.activeElement;
  move();
  if (focused !== document.activeElement) focused.focus({ preventScroll: true });
}

/**
 * Put the examples where they are seen, for the order of the keyboard: above the viewer, or below it on a narrow screen.
 * There they follow the results while a mask is corrected, whose tools lie directly below the viewer.
 */
function placeExamples() {
  const examples = get("#examples"), isCorrected = app.dataset.state === "shown" && get(".dm-correct");
  const before = narrowScreen.matches ? get(isCorrected ? ".dm-inspect" : "#picture") : null;
  if (examples.previousElementSibling === before) return;
  moveWithFocus(() => (before ? before.after(examples) : get(".dm-main").prepend(examples)));
}
placeExamples();
narrowScreen.addEventListener("change", placeExamples);

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

