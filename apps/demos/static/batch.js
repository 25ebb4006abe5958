// A batch: many files, a folder or a ZIP. The server predicts one picture at a time and removes it then; this page keeps the results.

const batch = { results: [], running: false, cancelled: false, archives: [] };
const byBatch = (name) => get(`#batch-${name}`);

// ---- ZIP files

const CRC = new Uint32Array(256).map((_, at) => {
  let value = at;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** A ZIP of files [name, bytes] without compression, which masks and JPEG files have already. */
function makeZip(files) {
  const parts = [], directory = [], names = new TextEncoder(), UTF8 = 0x0800, DAY = 0x21; // 1 January 1980
  let offset = 0;
  for (const [name, bytes] of files) {
    const path = names.encode(name), sum = crc32(bytes);
    const head = (central) => {
      const view = new DataView(new ArrayBuffer(central ? 46 : 30));
      let at = 0;
      const put = (size, value) => {
        if (size === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
        at += size;
      };
      put(4, central ? 0x02014b50 : 0x04034b50);
      if (central) put(2, 20); // version that wrote it
      for (const value of [20, UTF8, 0, 0, DAY]) put(2, value);
      for (const value of [sum, bytes.length, bytes.length]) put(4, value);
      put(2, path.length);
      put(2, 0);
      if (central) {
        for (const value of [0, 0, 0]) put(2, value);
        put(4, 0);
        put(4, offset);
      }
      return new Uint8Array(view.buffer);
    };
    directory.push(head(true), path);
    parts.push(head(false), path, bytes);
    offset += 30 + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0), end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...directory, new Uint8Array(end.buffer)], { type: "application/zip" });
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** Whether a file is a ZIP. Fails for one that cannot be read: a folder, or a file that was deleted meanwhile. */
async function isZip(file) {
  try {
    const [a, b, c] = new Uint8Array(await file.slice(0, 4).arrayBuffer());
    return a === 0x50 && b === 0x4b && (c === 3 || c === 5);
  } catch (problem) {
    throw new Error(TEXT.batch_unreadable);
  }
}

// ---- the pictures of a batch

/** The text of a message of the server, which is HTML. */
function plainText(message) {
  return new DOMParser().parseFromString(message, "text/html").body.textContent;
}

/** Send a file under a name of which the server knows that it removes the file after its use. */
const uploadForBatch = (file) => sendFile(file, `batch-${newId()}`);

async function askForBatch(name, request) {
  let answer;
  try {
    answer = await callServer(name, { id: newId(), ...request });
  } catch (problem) {
    throw new Error(TEXT.server_lost);
  }
  if (answer.error) throw new Error(plainText(answer.error));
  return answer;
}

/**
 * The pictures of some files, as {name, file} or {name, archive, position}; the files of a ZIP are listed by the server.
 * A file that cannot be read is {name, problem}.
 */
async function listPictures(files) {
  const pictures = [];
  for (const file of files) {
    if (batch.cancelled) break;
    const name = file.webkitRelativePath || file.name;
    if (file.name.startsWith(".") || /^(thumbs\.db|desktop\.ini)$/i.test(file.name)) continue;
    try {
      if (!(await isZip(file))) {
        pictures.push({ name, file });
        continue;
      }
      const archive = await uploadForBatch(file);
      batch.archives.push(archive);
      for (const part of (await askForBatch("batch_list", { path: archive })).files) {
        pictures.push({ name: `${name}/${part.name}`, archive, position: part.position, problem: part.problem });
      }
    } catch (problem) {
      pictures.push({ name, problem: problem.message });
    }
  }
  return pictures;
}

/** The settings of the tab Segment at the start of a batch. */
function batchSettings() {
  if (!get("#threshold")) return {};
  const which = get("#which").value;
  return { segment: { which, threshold: threshold(), min_share: Number(get("#min-share").value), largest_only: get("#largest").checked } };
}

async function startBatch(files) {
  if (batch.running || !files.length) return;
  for (const path of batch.archives) askForBatch("batch_close", { path }).catch(() => {}); // those of the batch before
  Object.assign(batch, { results: [], running: true, cancelled: false, settings: batchSettings(), archives: [] });
  choose(get("#tab-batch"), false);
  byBatch("work").hidden = false;
  byBatch("list").replaceChildren();
  byBatch("errors").replaceChildren();
  byBatch("failed").hidden = true;
  byBatch("problem").replaceChildren();
  byBatch("progress").removeAttribute("value");
  byBatch("status").textContent = TEXT.batch_listing;
  showBatch();
  const most = Number(byBatch("list").dataset.most);
  let pictures = [];
  try {
    pictures = await listPictures(files);
    if (pictures.length > most) byBatch("problem").innerHTML = box(write("batch_too_many", { count: pictures.length, most }));
    pictures = pictures.slice(0, most);
    byBatch("progress").max = Math.max(1, pictures.length);
    for (const picture of pictures) {
      if (batch.cancelled) break;
      showProgress(batch.results.length, pictures.length);
      await predictPicture({ ...picture, number: batch.results.length + 1 });
    }
  } finally {
    batch.running = false;
    const done = batch.results.length;
    byBatch("progress").value = done;
    byBatch("status").textContent = write(batch.cancelled ? "batch_cancelled" : "batch_done", { done, total: pictures.length });
    showBatch();
  }
}

async function predictPicture(picture) {
  try {
    if (picture.problem) throw new Error(picture.problem);
    const { archive, position = null } = picture, path = archive || (await uploadForBatch(picture.file));
    picture.answer = await askForBatch("batch_predict", { path, position, settings: batch.settings });
    const problems = Object.entries(picture.answer.problems).map(([panel, text]) => `${panel}: ${plainText(text)}`);
    picture.problems = problems.join(" · ");
  } catch (problem) {
    picture.error = problem.message;
  }
  batch.results.push(picture);
  if (picture.error) showBatchError(picture); else showThumbnail(picture);
}

// ---- what is shown

function showBatch() {
  byBatch("cancel").hidden = !batch.running;
  byBatch("files").disabled = byBatch("folder").disabled = batch.running;
  byBatch("download").disabled = !batch.results.some((picture) => picture.answer);
}

function showProgress(done, total) {
  byBatch("progress").value = done;
  byBatch("status").textContent = write("batch_running", { done, total });
}

const nameInBatch = (picture) => (byBatch("names").checked ? picture.name : write("batch_image", { number: picture.number }));

function showThumbnail(picture) {
  const { answer } = picture, item = document.createElement("li"), button = document.createElement("button");
  item.dataset.number = picture.number;
  for (const [key, value] of Object.entries(answer.orders)) item.dataset[key] = value;
  button.type = "button";
  button.innerHTML = '<img alt=""><b></b><span></span>';
  button.querySelector("img").src = answer.thumbnail;
  button.querySelector("b").textContent = nameInBatch(picture);
  button.querySelector("span").textContent = [answer.text, picture.problems].filter(Boolean).join(" · ");
  button.title = TEXT.batch_open;
  button.addEventListener("click", () => openFromBatch(picture));
  item.append(button);
  if (answer.unlike) {
    const mark = document.createElement("em");
    mark.textContent = TEXT.batch_unlike;
    item.classList.add("dm-marked");
    item.append(mark);
  }
  picture.item = item;
  byBatch("list").append(item);
  sortBatch();
  byBatch("download").disabled = false;
}

function showBatchError(picture) {
  const item = document.createElement("li");
  item.innerHTML = "<b></b><span></span>";
  item.querySelector("b").textContent = nameInBatch(picture);
  item.querySelector("span").textContent = picture.error;
  picture.item = item;
  byBatch("failed").hidden = false;
  byBatch("errors").append(item);
}

/** Open a picture of the batch in the viewer. */
async function openFromBatch(picture) {
  if (picture.file) return openCase(null, picture.file);
  try {
    openCase(null, (await askForBatch("batch_keep", { path: picture.archive, position: picture.position })).path);
  } catch (problem) {
    fail(box(problem.message));
  }
}

// ---- the results as a file

const cell = (value) => {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

/** The rows of the table: the columns that all pictures have, those of the results, and the error. */
function batchTable() {
  const named = byBatch("names").checked, columns = new Set();
  const pictures = [...batch.results].sort((a, b) => a.number - b.number);
  const rows = pictures.map((picture) => {
    const { answer } = picture, stem = String(picture.number).padStart(4, "0");
    const row = { number: picture.number, ...(named ? { name: picture.name } : {}) };
    if (answer) {
      Object.assign(row, { sha256: answer.sha256, width: answer.size[0], height: answer.size[1], ...answer.values });
      if (answer.mask) Object.assign(row, { mask: `masks/${stem}.png`, overlay: `overlays/${stem}.jpg` });
    }
    if (picture.problems) row.problems = picture.problems;
    if (picture.error) row.error = picture.error;
    Object.keys(row).forEach((column) => columns.add(column));
    return row;
  });
  columns.delete("error");
  return [[...columns, "error"], rows];
}

function downloadBatch() {
  const [columns, rows] = batchTable(), text = new TextEncoder();
  const lines = [columns, ...rows.map((row) => columns.map((column) => row[column]))].map((row) => row.map(cell).join(","));
  const about = { format: "dinomed.batch/1", purpose: TEXT.research, settings: batch.settings, images: rows };
  const files = [["results.csv", text.encode(`${lines.join("\n")}\n`)], ["results.json", text.encode(JSON.stringify(about, null, 1))]];
  for (const { number, answer } of batch.results) {
    if (!answer || !answer.mask) continue;
    const stem = String(number).padStart(4, "0");
    files.push([`masks/${stem}.png`, fromBase64(answer.mask)], [`overlays/${stem}.jpg`, fromBase64(answer.overlay)]);
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(makeZip(files));
  link.download = "dinomed_batch.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- events

let sortBatch = () => {};
if (byBatch("list")) {
  sortBatch = connectSorting(byBatch("orders"), byBatch("list"));
  for (const name of ["files", "folder"]) {
    byBatch(name).addEventListener("change", (event) => {
      startBatch([...event.target.files]);
      event.target.value = "";
    });
  }
  byBatch("cancel").addEventListener("click", () => {
    batch.cancelled = true;
    byBatch("status").textContent = TEXT.batch_cancelling;
  });
  byBatch("download").addEventListener("click", downloadBatch);
  byBatch("names").addEventListener("change", () => {
    for (const picture of batch.results) picture.item.querySelector("b").textContent = nameInBatch(picture);
  });
  // Several files, or a ZIP, that are dropped on the page; one picture goes to the viewer, several to the review if there is one.
  app.addEventListener("drop", (event) => {
    const files = [...event.dataTransfer.files], several = files.length > 1 && !get(".dm-correct");
    if (!several && !files.some((file) => /\.zip$/i.test(file.name))) return;
    event.preventDefault();
    event.stopPropagation();
    app.classList.remove("dm-over");
    startBatch(files);
  }, true);
}
