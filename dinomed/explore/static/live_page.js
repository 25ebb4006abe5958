// Page of the similarity of a patch.

const data = JSON.parse(document.getElementById("features").textContent);
const colour = (value) => {
  const place = value * (data.heat.length - 1), at = Math.min(Math.floor(place), data.heat.length - 2);
  return [0, 1, 2].map((k) => Math.round(data.heat[at][k] + (place - at) * (data.heat[at + 1][k] - data.heat[at][k])));
};
const images = data.images.map((each) => takeFeatures(each.features, each.rows, each.columns, data.components));
const tiles = [...document.querySelectorAll(".live")];
const strength = document.getElementById("live-strength");

new LiveTiles(tiles, images, colour, data.patch, ({ image, patch }, low, high, highest) => {
  tiles.forEach((tile, at) => {
    tile.nextElementSibling.textContent = `${data.images[at].name}: highest ${highest[at].toFixed(2)}`;
  });
  const { columns } = images[image];
  const place = `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  const range = `Colours: ${low.toFixed(2)} to ${high.toFixed(2)}.`;
  document.getElementById("live-status").textContent = `Patch in ${data.images[image].name}, ${place}. ${range}`;
});
const fade = () => {
  for (const tile of tiles) tile.querySelector("canvas").style.opacity = strength.value / 100;
};
strength.addEventListener("input", fade);
fade();
