// Pictures that wait for a decision, with `demo --save`: the most uncertain one comes next.
//
// Rule: first the pictures whose mask was measured, the most uncertain first; then those that are not measured yet, in the order of their
// files; at last those that were shown and left without a decision. Pictures with a saved decision are left out.

const queue = []; // cases: {file, uncertainty, isMeasured, isSkipped, judged}
let shownCase = null, measuringQueue = false;

/** Open the first of several files; where decisions are saved, the others wait for "next case". */
function openFirst(files) {
  const [first, ...waiting] = [...files];
  if (!first) return;
  if (!get(".dm-correct") || !waiting.length) {
    openCase(null, first);
    return;
  }
  queue.push(...waiting.map((file) => ({ file })));
  openCase({ file: first }).then(measureQueue);
}

/** Open a case, or a file that is none; the case that was shown waits again if it has no decision. */
function openCase(next, source = next.file) {
  if (shownCase && !shownCase.judged) queue.push(Object.assign(shownCase, { isSkipped: true }));
  shownCase = next;
  return open(source);
}

/** Measure the waiting pictures one after the other; the server removes each one afterwards. */
async function measureQueue() {
  if (measuringQueue) return;
  measuringQueue = true;
  for (let next; (next = queue.find((each) => !each.isMeasured));) await measureCase(next);
  measuringQueue = false;
}

async function measureCase(next) {
  const settings = { threshold: threshold(), min_share: Number(get("#min-share").value), largest_only: get("#largest").checked };
  next.isMeasured = true; // also without a result: it is not asked for again
  try {
    const path = await sendFile(next.file, `batch-${newId()}`);
    const answer = await callServer("rank", { id: newId(), path, settings });
    if (Number.isFinite(answer.uncertainty)) next.uncertainty = answer.uncertainty;
    if (answer.judged && queue.includes(next)) queue.splice(queue.indexOf(next), 1);
  } catch (problem) {
    // it keeps its place among those without a measure; opening it says why
  }
  showTools();
}

/** The place in the queue of the case that comes next; -1 if none waits. */
function nextPlace() {
  const rank = (each) => (each.isSkipped ? -2 : each.uncertainty === undefined ? -1 : each.uncertainty);
  return queue.reduce((best, each, at) => (best < 0 || rank(each) > rank(queue[best]) ? at : best), -1);
}

function showQueue() {
  const left = queue.length, examples = all("[data-example]").length;
  const measured = queue.filter((each) => each.uncertainty !== undefined).length;
  get("#next-case").disabled = !left && !examples;
  get("#next-case").textContent = left ? write("next_case_of", { left }) : TEXT.next_case;
  get("#next-rule").hidden = !left;
  get("#next-rule").textContent = write("next_rule", { left, measured });
}

function nextCase() {
  if (queue.length) {
    const [next] = queue.splice(nextPlace(), 1);
    openCase(next);
    return;
  }
  const names = all("[data-example]").map((button) => button.dataset.example);
  if (names.length) openCase(null, names[(names.indexOf(current ? current.path : "") + 1) % names.length]);
}
