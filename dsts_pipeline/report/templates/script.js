"use strict";
// Comfort only: without this script the page shows the same figures as one long page, charts as
// still drawings. No request is ever made.

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

let overChart = false; // charts say themselves what is under the pointer
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.("[data-tip]");
  if (mark) showTip(mark.dataset.tip, event.clientX, event.clientY);
  else if (!overChart) tip.hidden = true;
});
document.addEventListener("scroll", () => (tip.hidden = true), true);

// Light, dark, or as the system has it.
const asked = new URLSearchParams(location.search);
const themes = ["as the system", "light", "dark"];
const themeButton = document.getElementById("theme");
function setTheme(name) {
  const index = Math.max(0, themes.indexOf(name));
  document.documentElement.style.colorScheme = index ? themes[index] : "light dark";
  themeButton.textContent = `Colours: ${themes[index]}`;
  themeButton.onclick = () => setTheme(themes[(index + 1) % themes.length]);
}
themeButton.hidden = false;
setTheme(asked.get("theme"));

// On paper everything that is folded away is wanted, except what says otherwise.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});

// Charts: the still drawing gives way to the interactive one as its tab is shown first.
const specs = JSON.parse(document.getElementById("chart-data").textContent);
function chartTip(_, event, __, value) {
  overChart = value !== null && value !== undefined;
  if (overChart) showTip(String(value), event.clientX, event.clientY);
  else tip.hidden = true;
}
// `ast`: expressions are interpreted, since the page's content policy forbids eval.
const chartOptions = {
  mode: "vega", ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: chartTip,
};
function drawCharts() {
  if (!window.drawVega) return; // the library is read after the rest of the page
  for (const frame of document.querySelectorAll(".shown .chart[data-chart]:not(.live)")) {
    frame.classList.add("live");
    const place = document.createElement("div");
    place.setAttribute("aria-hidden", "true"); // the frame around it has the name
    window.drawVega(place, specs[Number(frame.dataset.chart)], chartOptions).then(() => {
      frame.replaceChildren(place);
      frame.classList.add("drawn");
    });
  }
}
addEventListener("DOMContentLoaded", drawCharts);

// Tabs, as the ARIA practices have them: one stop for Tab, arrows, Home and End between them.
const tabList = document.getElementById("tabs");
const tabs = [...tabList.children];
const panels = tabs.map((tab) => document.getElementById(tab.hash.slice(1)));
tabList.setAttribute("role", "tablist");
tabList.setAttribute("aria-label", "Parts of the report");
tabs.forEach((tab, index) => {
  tab.setAttribute("role", "tab");
  tab.setAttribute("aria-controls", panels[index].id);
  panels[index].setAttribute("role", "tabpanel");
  panels[index].setAttribute("aria-labelledby", tab.id);
  panels[index].tabIndex = 0;
});
document.documentElement.classList.add("tabbed");

const pageTitle = document.title;
function showTab(index, withFocus) {
  document.title = `${tabs[index].textContent} · ${pageTitle}`;
  tabs.forEach((tab, i) => {
    tab.setAttribute("aria-selected", String(i === index));
    tab.tabIndex = i === index ? 0 : -1;
    panels[i].classList.toggle("shown", i === index);
  });
  if (withFocus) tabs[index].focus();
  const [box, list] = [tabs[index].getBoundingClientRect(), tabList.getBoundingClientRect()];
  tabList.scrollLeft += box.left - list.left - (list.width - box.width) / 2;
  drawCharts();
}
function goTo(index, withFocus) {
  history.replaceState(null, "", tabs[index].hash);
  showTab(index, withFocus);
}
function followAddress() {
  const name = location.hash.slice(1) || asked.get("tab");
  const target = name && document.getElementById(name);
  const index = target ? panels.findIndex((panel) => panel.contains(target)) : 0;
  showTab(Math.max(0, index), false);
  if (target && !panels.includes(target)) target.scrollIntoView();
}
tabList.addEventListener("click", (event) => {
  const index = tabs.indexOf(event.target.closest("a"));
  if (index < 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  goTo(index, true);
});
tabList.addEventListener("keydown", (event) => {
  const now = tabs.indexOf(document.activeElement);
  const next = {
    ArrowRight: (now + 1) % tabs.length,
    ArrowLeft: (now + tabs.length - 1) % tabs.length,
    Home: 0,
    End: tabs.length - 1,
    " ": now,
  }[event.key];
  if (next === undefined || now < 0) return;
  event.preventDefault();
  goTo(next, true);
});
addEventListener("hashchange", followAddress);
followAddress();
// A browser scrolls to the part that an address names, and past the tabs: back to the top.
addEventListener("load", () => {
  if (!panels.some((panel) => `#${panel.id}` === location.hash)) return;
  document.activeElement.blur();
  scrollTo({ top: 0, behavior: "instant" });
});

// Previews move unless the system asks for little motion; then a tick in the box starts them.
if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  for (const box of document.querySelectorAll(".play")) box.checked = false;
}

// Attention is drawn over the frames unless a tick is taken away, anywhere: the boxes go together.
const shading = [...document.querySelectorAll(".shading")];
for (const box of shading) {
  box.addEventListener("change", () => {
    for (const other of shading) other.checked = box.checked;
  });
}

// Confusion explorer: a cell's clips by click, or by arrow keys and Enter.
const data = JSON.parse(document.getElementById("explorer-data").textContent);
const listing = document.getElementById("listing");
const MOST_LISTED = 200;
const stripOf = new Map(Object.entries(data.strips ?? {}));

function clipsOf(headIndex, row, column) {
  const head = data.heads[headIndex];
  const clips = head.clips ?? data.heads[0].clips;
  const labels = head.labels ?? data.heads[0].labels;
  const found = [];
  labels.forEach((label, i) => {
    if (label !== row || head.predicted[i] !== column) return;
    const route = head.neurons ? `neurons ${head.neurons[i].join("-")}` : "";
    found.push({ clip: clips[i], sureness: head.sureness[i], route, right: row === column });
  });
  return found.sort((a, b) => b.sureness - a.sureness);
}

function clipItem({ clip, sureness, route, right }) {
  const item = document.createElement("li");
  const strip = stripOf.get(clip) ?? -1;
  if (strip >= 0) {
    const preview = document.createElement("span");
    preview.className = `strip strip-${strip} ${right ? "right" : "miss"}`;
    preview.setAttribute("role", "img");
    preview.setAttribute("aria-label", `preview of ${clip}`);
    item.append(preview);
  }
  for (const text of [clip, `${(100 * sureness).toFixed(0)} % sure`, route]) {
    if (!text) continue;
    const line = document.createElement("span");
    line.textContent = text;
    item.append(line);
  }
  return item;
}

function listCell(headIndex, row, column, withClips) {
  const found = clipsOf(headIndex, row, column);
  const [truth, answer] = [data.classes[row], data.classes[column]];
  const clips = found.length === 1 ? "1 clip" : `${found.length} clips`;
  const more = found.length > MOST_LISTED ? `, the first ${MOST_LISTED} listed` : "";
  document.getElementById("said").textContent =
    (row === column ? `${truth}: ${clips} right` : `${truth} taken for ${answer}: ${clips}`) + more;
  const items = withClips ? found.slice(0, MOST_LISTED).map(clipItem) : [];
  document.getElementById("listed").replaceChildren(...items);
  listing.classList.toggle("full", items.length > 0);
}

for (const frame of document.querySelectorAll(".explorer .wide")) {
  const ground = frame.querySelector(".background"); // as large as all cells together
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  cursor.setAttribute("class", "cursor");
  ground.parentNode.append(cursor);
  const headIndex = Number(frame.dataset.head);
  const last = data.classes.length - 1;
  const place = { row: 0, column: 0 };
  const moveTo = (row, column, withClips) => {
    place.row = Math.min(last, Math.max(0, row));
    place.column = Math.min(last, Math.max(0, column));
    const cell = ground.getBBox().width / data.classes.length;
    cursor.setAttribute("x", place.column * cell);
    cursor.setAttribute("y", place.row * cell);
    cursor.setAttribute("width", cell);
    cursor.setAttribute("height", cell);
    listCell(headIndex, place.row, place.column, withClips);
  };
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  frame.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (step) moveTo(place.row + step[0], place.column + step[1], false);
    else if (event.key === "Enter" || event.key === " ") moveTo(place.row, place.column, true);
    else if (event.key === "Home") moveTo(place.row, place.row, false);
    else return;
    event.preventDefault();
    cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  frame.addEventListener("click", (event) => {
    if (!event.target.closest("[data-tip]")) return;
    const box = ground.getBoundingClientRect();
    const cell = box.width / data.classes.length;
    frame.classList.add("pinned");
    const row = Math.floor((event.clientY - box.top) / cell);
    const column = Math.floor((event.clientX - box.left) / cell);
    moveTo(row, column, true);
  });
  // An address may name a cell, such as report.html?cell=3-5#confusion: classes counted from 1.
  const cell = /^(\d+)-(\d+)$/.exec(asked.get("cell") ?? "");
  if (cell && frame.offsetParent) {
    frame.classList.add("pinned");
    moveTo(Number(cell[1]) - 1, Number(cell[2]) - 1, true);
  }
}
for (const choice of document.querySelectorAll("input[name=head]")) {
  choice.addEventListener("change", () => {
    document.getElementById("said").textContent = "";
    document.getElementById("listed").replaceChildren();
    listing.classList.remove("full");
  });
}
