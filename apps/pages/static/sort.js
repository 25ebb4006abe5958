// Sorting of a list of pictures, for the contact sheet of `dinomed predict` and for the tab Batch of the demo.

/** Sort the children of `list` by a value of their data set, named by `key`: "area" the largest first, "-area" the smallest.
 * Children without this value come last; those with equal values keep the order of their numbers. */
function sortItems(list, key) {
  const rising = key.startsWith("-") || key === "number", name = key.replace("-", "");
  const value = (item) => (item.dataset[name] === undefined ? NaN : Number(item.dataset[name]));
  const items = [...list.children];
  items.sort((first, second) => {
    const a = value(first), b = value(second), byNumber = first.dataset.number - second.dataset.number;
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || byNumber;
    return (rising ? a - b : b - a) || byNumber;
  });
  list.append(...items);
}

/** Sort `list` by the buttons with data-sort in `bar`; returns a function that sorts again, by the button that is pressed. */
function connectSorting(bar, list) {
  const buttons = [...bar.querySelectorAll("[data-sort]")];
  const again = () => {
    const pressed = buttons.find((button) => button.getAttribute("aria-pressed") === "true");
    if (pressed) sortItems(list, pressed.dataset.sort);
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      again();
    });
  }
  return again;
}
