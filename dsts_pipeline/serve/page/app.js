// Sends one video, draws the answer. All text goes in as text: nothing is parsed as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const part = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)} %`;
let running = null;

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function draw(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

function complain(text) {
  part("status").textContent = "";
  part("problem").textContent = text;
  part("problem").hidden = false;
  part("answer").hidden = true;
}

function send(file) {
  const limit = Number(document.body.dataset.uploadBytes);
  if (file.size > limit) {
    if (running) running.abort();
    running = null;
    complain(`${file.name} is larger than ${Number((limit / 1048576).toPrecision(6))} MiB.`);
    return;
  }
  ask(file.name, "/answers", file);
}

// Unless `isShown` is false, the answer gets the focus, and the window scrolls there.
async function ask(name, address, body, isShown = true) {
  if (running) running.abort();
  const turn = (running = new AbortController());
  part("problem").hidden = true;
  part("status").textContent = `Looking at ${name} …`;
  try {
    const answer = await fetch(address, {
      method: "POST",
      headers: { "X-DSTS-Upload": "video", "Content-Type": "application/octet-stream" },
      body,
      signal: turn.signal,
    });
    const result = await answer.json();
    if (running !== turn) return;
    if (answer.ok) show(name, result, isShown);
    else complain(`${name}: ${result.error}`);
  } catch (error) {
    if (error.name !== "AbortError") complain(`${name}: no answer from the server.`);
  } finally {
    if (running === turn) running = null;
  }
}

function show(name, result, isShown) {
  const best = result.top[0];
  part("status").textContent = result.is_far
    ? `${name}: probably none of these classes.`
    : `${name}: ${best.name}, ${percent(best.probability)}.`;
  part("far").hidden = !result.is_far;
  if (result.is_far) {
    part("far").textContent =
      "Probably none of these classes: it is farther from every training clip than these are from each other " +
      `(cosine ${result.neighbours[0].similarity.toFixed(3)}). What the head would say all the same:`;
  }
  part("answer-title").textContent = `Answer for ${name}`;
  showVideo(name, result);
  showTop(result.top);
  part("route-part").hidden = result.layers.length === 0;
  if (result.layers.length) showRoute(result.layers, result.num_views);
  part("neighbours").replaceChildren(...(result.neighbours ?? []).map((clip) => neighbour(clip, result.strip_frames)));
  part("seconds").textContent =
    "Milliseconds: " +
    Object.entries(result.seconds).map(([key, value]) => `${key} ${(1000 * value).toFixed(0)}`).join(", ") +
    ".";
  part("answer").hidden = false;
  if (isShown) part("answer").focus({ preventScroll: false });
}

// Frames side by side in one picture, which the style sheet moves frame by frame.
function play(node, uri, numFrames) {
  node.style.backgroundImage = `url("${uri}")`;
  node.style.backgroundSize = `${100 * numFrames}% 100%`;
  node.style.animationTimingFunction = `steps(${numFrames}, jump-none)`;
}

// Frames next to each other, each with a shade over it where the readout attends.
const SHOWN = [0, 2, 4, 7, 9, 11];

function showVideo(name, result) {
  const film = part("film"), video = result.video, last = result.strip_frames - 1;
  const at = (node, uri, place) => {
    node.style.backgroundImage = `url("${uri}")`;
    node.style.backgroundSize = `${100 * result.strip_frames}% 100%`;
    node.style.backgroundPosition = `${(100 * place) / last}% 0`;
    return node;
  };
  const shares = result.shares ?? [], most = Math.max(...shares);
  film.replaceChildren(
    ...SHOWN.map((place) => {
      const frame = at(make("span", { class: "frame" }), result.strip, place);
      if (result.shade) {
        const bar = make("span", { class: "share" });
        bar.style.height = `${(18 * shares[place]) / most}px`;
        frame.append(at(make("span", { class: "shade" }), result.shade, place), bar);
      }
      return frame;
    }),
  );
  film.classList.toggle("barred", Boolean(result.shade));
  const said = SHOWN.map((place) => percent(shares[place])).join(", ");
  const taken = result.shade ? `; attention on the time step of each frame: ${said}` : "";
  film.setAttribute("aria-label", `What the model saw of ${name}${taken}`);
  part("shading-part").hidden = !result.shade;
  const views = result.num_views > 1 ? `; the answer is the mean of ${result.num_views} views, this is the first` : "";
  part("facts").textContent =
    `What the model saw. File: ${video.num_frames} frames, ${video.width_px} × ${video.height_px} px${views}.`;
}

function showTop(top) {
  part("top").replaceChildren(
    ...top.map((entry) => {
      const bar = make("div", { class: "bar" });
      bar.style.width = `${100 * entry.probability}%`;
      return make(
        "li",
        {},
        make("span", { class: "name" }, entry.name),
        make("span", { class: "track", "aria-hidden": "true" }, bar),
        make("span", { class: "percent" }, percent(entry.probability)),
      );
    }),
  );
}

function neighbour(clip, numFrames) {
  let picture = make("div", { class: "none" }, "no preview");
  if (clip.strip) {
    picture = make("div", { class: "strip", role: "img", "aria-label": `Training clip ${clip.id}` });
    play(picture, clip.strip, numFrames);
  }
  return make("li", {}, picture, make("b", {}, clip.name), `${clip.id}, cosine ${clip.similarity.toFixed(3)}`);
}

// ---- the route: a column of neurons per layer -------------------------------------------------

const STEP_X = 190, STEP_Y = 34, RADIUS = 12, TOP = 46, LEFT = 40;

function place(layer, neuron) {
  return [LEFT + layer * STEP_X, TOP + neuron * STEP_Y];
}

// The sector of a disc that covers `share` of it, from twelve o'clock.
function sector(x, y, share) {
  if (share >= 0.9999) return draw("circle", { class: "time", cx: x, cy: y, r: RADIUS - 3 });
  const angle = 2 * Math.PI * share, r = RADIUS - 3;
  const end = [x + r * Math.sin(angle), y - r * Math.cos(angle)];
  const path = `M${x} ${y}V${y - r}A${r} ${r} 0 ${share > 0.5 ? 1 : 0} 1 ${end[0]} ${end[1]}Z`;
  return draw("path", { class: "time", d: path });
}

function line(route, kind) {
  const points = route.map((neuron, layer) => place(layer, neuron));
  const [first, last] = [points[0], points[points.length - 1]];
  const d = [`M${first[0] - 34} ${first[1]}H${first[0]}`];
  for (let i = 1; i < points.length; i++) {
    const [x0, y0] = points[i - 1], [x1, y1] = points[i], middle = (x0 + x1) / 2;
    d.push(`C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}`);
  }
  d.push(`H${last[0] + 96}`);
  return draw("path", { class: kind, d: d.join("") });
}

function showRoute(layers, numViews) {
  const most = Math.max(...layers.map((layer) => layer.num_neurons));
  const width = LEFT + (layers.length - 1) * STEP_X + 110, height = TOP + most * STEP_Y;
  const routes = [...Array(numViews).keys()].map((view) => layers.map((layer) => layer.chosen[view]));
  const words = layers.map((layer, i) => `layer ${i + 1}: neuron ${layer.chosen[0] + 1}`).join(", ");
  const picture = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Route, ${words}` });
  const others = new Map(routes.slice(1).map((route) => [route.join(), route]));
  others.delete(routes[0].join());
  for (const route of others.values()) picture.append(line(route, "path other"));
  picture.append(line(routes[0], "path"));
  layers.forEach((layer, i) => picture.append(column(layer, i)));
  part("route").replaceChildren(picture);
  part("route-table").tBodies[0].replaceChildren(...layers.map(row));
}

function column(layer, i) {
  const group = draw("g");
  group.append(draw("text", { x: place(i, 0)[0], y: 18, "text-anchor": "middle" }, `Layer ${i + 1}`));
  for (let n = 0; n < layer.num_neurons; n++) {
    const [x, y] = place(i, n), share = layer.temporal_shares?.[n];
    const neuron = draw("g", { class: n === layer.chosen[0] ? "neuron chosen" : "neuron" });
    neuron.append(draw("circle", { class: "ring", cx: x, cy: y, r: RADIUS }));
    if (share > 0) neuron.append(sector(x, y, share));
    const text = share === undefined ? `${n + 1}` : `${n + 1}: ${(100 * share).toFixed(0)} %`;
    neuron.append(draw("text", { x: x + RADIUS + 8, y: y + 4 }, text));
    group.append(neuron);
  }
  return group;
}

function row(layer, i) {
  const chosen = layer.chosen[0], share = layer.temporal_shares?.[chosen];
  const others = layer.chosen.filter((neuron) => neuron !== chosen).length;
  const told = layer.chosen.length === 1 ? "–" : others ? `${others} of ${layer.chosen.length} otherwise` : "all alike";
  const cells = [`${chosen + 1} of ${layer.num_neurons}`, share === undefined ? "–" : percent(share), told];
  return make("tr", {}, make("th", { scope: "row" }, `${i + 1}`), ...cells.map((text) => make("td", {}, text)));
}

// ---- examples: test clips of the run, to click ------------------------------------------------

async function offerExamples() {
  const answer = await fetch("/examples");
  const { examples, num_frames } = await answer.json();
  if (!examples.length) return;
  const items = examples.map((example, number) => {
    const picture = make("span", { class: "strip", "aria-hidden": "true" });
    play(picture, example.strip, num_frames);
    const button = make("button", { type: "button", class: "example" }, picture, make("span", {}, example.class));
    button.addEventListener("click", () => askExample(example, number));
    return make("li", {}, button);
  });
  part("examples").replaceChildren(...items);
  part("examples-part").hidden = false;
  // An address may choose one, counted from 1, such as for a picture of the page.
  const chosen = Number(new URLSearchParams(location.search).get("example"));
  if (examples[chosen - 1]) askExample(examples[chosen - 1], chosen - 1, false);
}
function askExample(example, number, isShown) {
  ask(`${example.name} (${example.class})`, `/examples/${number}`, undefined, isShown);
}
offerExamples();
part("shading").addEventListener("change", (event) => {
  part("film").classList.toggle("bare", !event.target.checked);
});

// ---- ways in ----------------------------------------------------------------------------------

part("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) send(file);
});
const drop = part("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser would open the file
    drop.classList.toggle("over", kind === "dragover");
  });
}
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) send(file);
});
part("pause").addEventListener("click", (event) => {
  const isPaused = document.body.classList.toggle("paused");
  event.target.setAttribute("aria-pressed", String(isPaused));
});
