// Images unlike the training images: a banner in the tab, behind which the answer waits until it is asked for.

/** Remove the banners and notes of the previous picture. */
function clearTrust() {
  for (const part of all(".dm-unlike, .dm-familiar")) part.hidden = true;
  for (const body of all(".dm-body")) body.hidden = false;
  for (const state of all(".dm-state")) state.innerHTML = "";
}

/** Show the answer of a panel, or hold it back if the picture is unlike the training images. */
async function deliver(picture, name, result) {
  const panel = get(`#panel-${name}`), { unlike, percentile } = result.familiarity || {};
  const held = Boolean(unlike) && !picture.accepted;
  panel.querySelector(".dm-unlike").hidden = !unlike;
  panel.querySelector(".dm-show-anyway").hidden = !held;
  panel.querySelector(".dm-body").hidden = held;
  const note = panel.querySelector(".dm-familiar");
  if (note) {
    note.hidden = percentile === undefined || unlike;
    note.textContent = note.hidden ? "" : write("familiar", { percent: Math.round(percentile), reference: panel.dataset.reference });
  }
  if (held) {
    picture.held[name] = result;
    return;
  }
  panel.querySelector(".dm-result").innerHTML = result.html || "";
  const state = panel.querySelector(".dm-state"); // whether the model abstains, which the outline leaves in place
  if (state) state.innerHTML = result.state || "";
  if (result.map) await takeMap(picture, result);
  if (result.explore && current === picture) showExplore(picture, result.explore);
}

/** Show what was held back, in all tabs: the visitor has seen the warning. */
async function showAnyway() {
  const picture = current;
  if (!picture) return;
  picture.accepted = true;
  for (const [name, result] of Object.entries(picture.held)) {
    if (current === picture) await deliver(picture, name, result);
  }
  picture.held = {};
  describe();
}

for (const button of all(".dm-show-anyway")) {
  button.addEventListener("click", () => {
    const panel = button.closest("[role=tabpanel]");
    showAnyway();
    panel.focus(); // the button is gone
  });
}
