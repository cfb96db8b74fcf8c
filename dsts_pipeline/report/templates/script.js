"use strict";
// Comfort only: without this script the page shows the same figures. No request is ever made.

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
  const top = y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.("[data-tip]");
  if (mark) showTip(mark.dataset.tip, event.clientX, event.clientY);
  else tip.hidden = true;
});
document.addEventListener("scroll", () => (tip.hidden = true), true);

// Light, dark, or as the system has it.
const themes = ["as the system", "light", "dark"];
const themeButton = document.getElementById("theme");
function setTheme(name) {
  const index = Math.max(0, themes.indexOf(name));
  document.documentElement.style.colorScheme = index ? themes[index] : "light dark";
  themeButton.textContent = `Colours: ${themes[index]}`;
  themeButton.onclick = () => setTheme(themes[(index + 1) % themes.length]);
}
themeButton.hidden = false;
setTheme(new URLSearchParams(location.search).get("theme"));

// On paper everything that is folded away is wanted, except what says otherwise.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});

// Confusion explorer: a cell's clips by click, or by arrow keys and Enter.
const data = JSON.parse(document.getElementById("explorer-data").textContent);
const listing = document.getElementById("listing");
const MOST_LISTED = 200;

function clipsOf(headIndex, row, column) {
  const head = data.heads[headIndex];
  const clips = head.clips ?? data.heads[0].clips;
  const labels = head.labels ?? data.heads[0].labels;
  const found = [];
  labels.forEach((label, i) => {
    if (label !== row || head.predicted[i] !== column) return;
    const neurons = head.neurons ? `, neurons ${head.neurons[i].join("-")}` : "";
    found.push(`${clips[i]} (${(100 * head.sureness[i]).toFixed(0)} %${neurons})`);
  });
  return found;
}

function listCell(headIndex, row, column, withClips) {
  const found = clipsOf(headIndex, row, column);
  const [truth, answer] = [data.classes[row], data.classes[column]];
  const clips = found.length === 1 ? "1 clip" : `${found.length} clips`;
  const line = document.createElement("p");
  line.textContent = row === column
    ? `${truth}: ${clips} right` : `${truth} taken for ${answer}: ${clips}`;
  listing.replaceChildren(line);
  if (!withClips || !found.length) return;
  const list = document.createElement("ul");
  for (const text of found.slice(0, MOST_LISTED)) {
    const item = document.createElement("li");
    item.className = "mono";
    item.textContent = text;
    list.append(item);
  }
  if (found.length > MOST_LISTED) line.textContent += `, the first ${MOST_LISTED} listed`;
  listing.append(list);
}

for (const frame of document.querySelectorAll(".explorer .wide")) {
  const svg = frame.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const headIndex = Number(frame.dataset.head);
  const last = data.classes.length - 1;
  const place = { row: 0, column: 0 };
  const moveTo = (row, column, withClips) => {
    place.row = Math.min(last, Math.max(0, row));
    place.column = Math.min(last, Math.max(0, column));
    const { left, top, cell } = svg.dataset;
    cursor.setAttribute("x", Number(left) + place.column * cell);
    cursor.setAttribute("y", Number(top) + place.row * cell);
    listCell(headIndex, place.row, place.column, withClips);
  };
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) moveTo(place.row + step[0], place.column + step[1], false);
    else if (event.key === "Enter" || event.key === " ") moveTo(place.row, place.column, true);
    else if (event.key === "Home") moveTo(place.row, place.row, false);
    else return;
    event.preventDefault();
    cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  svg.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-row]");
    if (!cell) return;
    frame.classList.add("pinned");
    moveTo(Number(cell.dataset.row), Number(cell.dataset.column), true);
  });
}
for (const choice of document.querySelectorAll("input[name=head]")) {
  choice.addEventListener("change", () => (listing.textContent = ""));
}
