// A similar case beside the image, enlarged, in a dialog.

let comparedCase = null; // the button of the case that is shown
const comparison = get(".dm-compare");
const caseButtons = () => (comparedCase ? [...comparedCase.closest(".cases").querySelectorAll(".case-open")] : []);

function compareCase(button) {
  if (!current || !current.preview) return;
  comparedCase = button;
  const picture = button.querySelector("img"), caption = button.closest("figure").querySelector("figcaption");
  get("#own-side img").src = current.preview;
  get("#case-side").src = picture.src;
  get("#case-side").alt = picture.alt;
  const isPair = Boolean(button.closest(".pairs")), words = [...caption.children].map((part) => part.textContent).join(" · ");
  get("#case-caption").textContent = isPair ? write("pair_caption", { case: words }) : words;
  get(".dm-sides").classList.toggle("dm-pair", isPair); // a pair shows this image already
  const buttons = caseButtons(), at = buttons.indexOf(button);
  get("#case-before").disabled = at === 0;
  get("#case-after").disabled = at === buttons.length - 1;
  if (!comparison.open) comparison.showModal();
}

function moveCase(step) {
  const next = caseButtons()[caseButtons().indexOf(comparedCase) + step];
  if (next) compareCase(next);
}

app.addEventListener("click", (event) => {
  const button = event.target.closest(".case-open");
  if (button) compareCase(button);
});
get("#case-before").addEventListener("click", () => moveCase(-1));
get("#case-after").addEventListener("click", () => moveCase(1));
get("#case-close").addEventListener("click", () => comparison.close());
comparison.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") moveCase(-1);
  else if (event.key === "ArrowRight") moveCase(1);
});
comparison.addEventListener("close", () => {
  if (comparedCase && comparedCase.isConnected) comparedCase.focus();
  comparedCase = null;
});
