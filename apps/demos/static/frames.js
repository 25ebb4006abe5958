// Frames of a file of several: a slider, buttons and keys choose one, and every result is that of this frame.

const FRAME_PAUSE_MS = 150; // the slider has rested for so long before a frame is asked for
let series = null; // {path, number, frames, frame, view, window, edits} of the file that is shown, if it has several frames
let resting = 0; // a timer, while a frame is not asked for yet

/** Show the slider for the answer to a picture; null: remove that of the previous file. */
function showFrames(picture, answer) {
  clearTimeout(resting);
  resting = 0;
  get("#video-problem").textContent = answer?.problem ? write("video_problem", answer) : "";
  if (!picture || !(answer.frames > 1)) {
    series = null;
    get("#frames").hidden = true;
    return;
  }
  if (!series || series.path !== picture.path) {
    series = { path: picture.path, number: picture.number, frames: answer.frames, edits: new Map() };
    get("#frame").max = answer.frames;
  }
  picture.frames = answer.frames;
  get("#frames").hidden = false;
  describeFrame(picture.frame, answer.seconds);
}

/** Say which frame is chosen, and its time where the file states one. */
function describeFrame(frame, seconds) {
  const values = { frame: frame + 1, frames: series.frames, seconds: Number.isFinite(seconds) ? seconds.toFixed(2) : "" };
  const words = write(Number.isFinite(seconds) ? "frame_at" : "frame_of", values);
  series.frame = frame;
  get("#frame").value = frame + 1;
  get("#frame").setAttribute("aria-valuetext", words);
  get("#frame-state").textContent = words;
  get("#frame-before").disabled = frame === 0;
  get("#frame-after").disabled = frame === series.frames - 1;
}

/** Forget the results of the frame that was shown, at once, and ask for those of another one. */
function openFrame(frame) {
  if (!series || frame === series.frame || !(frame >= 0 && frame < series.frames)) return;
  if (current && current.edits) series.edits.set(current.frame, { edits: current.edits, undo: current.undo });
  if (viewer.picture) series.view = { zoom: viewer.zoom, shift: viewer.shift };
  if (gray) series.window = gray.chosen;
  clearAll("busy");
  current = { id: newId(), number: series.number, held: {}, path: series.path, frame, frames: series.frames };
  Object.assign(current, { view: series.view, window: series.window }, series.edits.get(frame));
  describeFrame(frame, null);
  clearTimeout(resting);
  resting = setTimeout(() => {
    resting = 0;
    ask(null);
  }, FRAME_PAUSE_MS);
}

/** Part of the names of downloads that says which frame they are of. */
const frameName = (picture) => (picture.frames > 1 ? `_frame_${picture.frame + 1}` : "");

get("#frame").addEventListener("input", (event) => openFrame(Number(event.target.value) - 1));
get("#frame-before").addEventListener("click", () => openFrame(series.frame - 1));
get("#frame-after").addEventListener("click", () => openFrame(series.frame + 1));
get(".dm-stage").addEventListener("keydown", (event) => {
  const step = { ",": -1, ".": 1 }[event.key];
  if (!series || !step || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  openFrame(series.frame + step);
});
