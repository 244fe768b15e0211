"use strict";
// The features of all images are integers; `step` times an integer is a coefficient. Planes follow one another: the
// coefficients of all patches in the first direction, then in the second. Maps are Float32Arrays of h * w patches.

const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const images = data.images;
const state = { view: "similarity", mode: "set", points: [], queries: new Map(), run: 0, cursor: null };

// ---- numbers

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Int8Array(await new Response(stream).arrayBuffer());
}

// sum over planes of weights[d] * x[d], for every patch; four planes at a time, without those of weight 0, of which
// rounded queries have many
function product(weights, x, n) {
  const out = new Float32Array(n), used = [];
  for (let d = 0; d < weights.length; d++) if (weights[d]) used.push([weights[d], d * n]);
  while (used.length % 4) used.push([0, 0]);
  for (let k = 0; k < used.length; k += 4) {
    const [[p, a], [q, b], [r, c], [s, d]] = used.slice(k, k + 4);
    for (let i = 0; i < n; i++) out[i] += p * x[a + i] + q * x[b + i] + r * x[c + i] + s * x[d + i];
  }
  return out;
}

// 1 / the length of every patch's vector
function inverseLengths(x, n) {
  const sums = new Float32Array(n);
  for (let first = 0; first < x.length; first += n) for (let i = 0; i < n; i++) sums[i] += x[first + i] * x[first + i];
  return sums.map((sum) => (sum ? 1 / Math.sqrt(sum) : 0));
}

// the unit vector of a patch
function unit(image, patch) {
  return Float32Array.from({ length: image.planes }, (_, d) => image.x[d * image.n + patch] * image.inverse[patch]);
}

function cosines(query, image) {
  const out = product(query, image.x, image.n);
  for (let i = 0; i < image.n; i++) out[i] *= image.inverse[i];
  return out;
}

// the cosine with the nearest positive point, minus that with the nearest negative one where there are any
function similarity(index) {
  const [plus, minus] = ["plus", "minus"].map((sign) => {
    const maps = state.points.filter((p) => p.sign === sign).map((p) => p.maps[index]);
    if (maps.length < 2) return maps[0];
    const nearest = maps[0].slice();
    for (const map of maps) for (let i = 0; i < map.length; i++) if (map[i] > nearest[i]) nearest[i] = map[i];
    return nearest;
  });
  if (!minus) return plus;
  return minus.map((v, i) => (plus ? plus[i] : 0) - v);
}

function attention(image, query, head) {
  const { heads, queries, keys, x, step, classToken } = image.attention;
  const columns = keys[0] * keys[1], n = queries[0] * queries[1] + Number(classToken) + columns, rank = image.attention.planes / heads;
  const row = query === null ? 0 : Number(classToken) + cell(query, image.grid, queries);
  const total = new Float32Array(columns);
  for (let h = head < 0 ? 0 : head; h < (head < 0 ? heads : head + 1); h++) {
    const logits = new Float32Array(columns);
    for (let r = 0; r < rank; r++) {
      const first = (h * rank + r) * n, weight = x[first + row] * step * step;
      for (let i = 0; i < columns; i++) logits[i] += weight * x[first + n - columns + i];
    }
    const top = Math.max(...logits), weights = logits.map((v) => Math.exp(v - top));
    const sum = weights.reduce((a, b) => a + b);
    for (let i = 0; i < columns; i++) total[i] += weights[i] / sum;
  }
  return total;
}

// the cell of a coarser grid in which a patch lies
function cell(patch, [, w], coarse) {
  const side = Math.ceil(w / coarse[1]);
  return Math.floor(Math.floor(patch / w) / side) * coarse[1] + Math.floor((patch % w) / side);
}

function random(seed) { // mulberry32
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const dot = (a, b) => { let sum = 0; for (let d = 0; d < a.length; d++) sum += a[d] * b[d]; return sum; };

// the unit centres of k-means by cosine, from a k-means++ start
function centresOf(rows, count) {
  const draw = random(0), distance = new Float32Array(rows.length).fill(1), centres = [];
  while (centres.length < count) {
    let left = draw() * distance.reduce((a, b) => a + b), i = 0;
    while (i < rows.length - 1 && (left -= distance[i]) > 0) i++;
    centres.push(rows[i]);
    rows.forEach((row, j) => (distance[j] = Math.max(0, Math.min(distance[j], 1 - dot(row, rows[i])))));
  }
  for (let turn = 0; turn < 12; turn++) {
    const sums = centres.map((c) => new Float32Array(c.length));
    for (const row of rows) {
      let best = 0, most = -2;
      centres.forEach((c, k) => { const v = dot(row, c); if (v > most) [best, most] = [k, v]; });
      for (let d = 0; d < row.length; d++) sums[best][d] += row[d];
    }
    sums.forEach((sum, k) => { const l = Math.sqrt(dot(sum, sum)); if (l > 0) centres[k] = sum.map((v) => v / l); });
  }
  return centres;
}

function sampled(list, most) { // unit vectors of patches, evenly spaced
  const all = list.reduce((sum, image) => sum + image.n, 0), step = Math.max(1, Math.floor(all / most)), rows = [];
  for (const image of list) for (let i = 0; i < image.n; i += step) rows.push(unit(image, i));
  return rows;
}

function regions(image, centres) {
  const maps = centres.map((centre) => product(centre, image.x, image.n));
  return maps[0].map((_, i) => maps.reduce((best, map, k) => (map[i] > maps[best][i] ? k : best), 0));
}

function components(image, { mean, directions, low, high }) {
  return directions.map((direction, c) => {
    const shift = dot(mean, direction) + low[c], scale = Math.max(high[c] - low[c], 1e-9);
    return product(direction, image.x, image.n).map((v) => Math.min(1, Math.max(0, (v * image.step - shift) / scale)));
  });
}

// ---- pictures: arrays of RGBA values, one per patch

const packed = (r, g, b, a = 255) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
const heatColours = data.heat.map(([r, g, b]) => packed(r, g, b));
const labelColours = data.palette.map(([r, g, b]) => packed(r, g, b));
const maskColour = packed(255, 96, 0, 255);
const heat = (v) => // 0 and less is dark, 1 bright
  heatColours[v <= 0 ? 0 : v >= 1 ? 255 : (v * 255 + 0.5) | 0];

function coloured(map, colour) {
  const out = new Uint32Array(map.length);
  for (let i = 0; i < out.length; i++) out[i] = colour(map[i], i);
  return out;
}

function paint(image, colours, [h, w] = image.grid) {
  const { canvas, context } = image;
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const pixels = context.createImageData(w, h);
  new Uint32Array(pixels.data.buffer).set(colours);
  context.putImageData(pixels, 0, 0);
}

function wipe(image) { image.context.clearRect(0, 0, image.canvas.width, image.canvas.height); }

// a map at another size, by bilinear interpolation between the centres of patches, or by nearest neighbour
function enlarged(map, [h, w], height, width, smooth) {
  const out = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const v = Math.min(h - 1, Math.max(0, ((y + 0.5) * h) / height - 0.5)), top = Math.floor(v), a = v - top;
    const near = Math.min(h - 1, Math.floor(((y + 0.5) * h) / height)), below = Math.min(h - 1, top + 1);
    for (let x = 0; x < width; x++) {
      const u = Math.min(w - 1, Math.max(0, ((x + 0.5) * w) / width - 0.5)), left = Math.floor(u), b = u - left;
      const right = Math.min(w - 1, left + 1);
      out[y * width + x] = smooth
        ? (1 - a) * ((1 - b) * map[top * w + left] + b * map[top * w + right]) + a * ((1 - b) * map[below * w + left] + b * map[below * w + right])
        : map[near * w + Math.min(w - 1, Math.floor(((x + 0.5) * w) / width))];
    }
  }
  return out;
}

async function saveMask(image, map) {
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = canvas.getContext("2d"), pixels = context.createImageData(image.width, image.height);
  const values = enlarged(map, image.grid, image.height, image.width, get("smooth").checked), level = get("threshold").value;
  new Uint32Array(pixels.data.buffer).set(coloured(values, (v) => (v >= level ? 0xffffffff : 0xff000000)));
  context.putImageData(pixels, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done));
  const name = image.name.split(/[\\/]/).pop().replace(/\.\w+$/, "");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${name}_mask.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- views

const VIEWS = {
  similarity() {
    const level = Number(get("threshold").value), masked = get("masked").checked, smooth = get("smooth").checked;
    images.forEach((image, index) => {
      const map = state.points.length ? similarity(index) : null;
      image.map = map;
      image.save.hidden = !(map && masked);
      if (!map) { image.best = null; wipe(image); image.score.textContent = image.caption; return; }
      image.best = 0;
      for (let i = 1; i < map.length; i++) if (map[i] > map[image.best]) image.best = i;
      image.score.textContent = map[image.best].toFixed(2);
      if (!masked) return paint(image, coloured(map, heat));
      const [h, w] = smooth ? image.grid.map((n) => n * 4) : image.grid;
      const values = smooth ? enlarged(map, image.grid, h, w, true) : map;
      paint(image, coloured(values, (v) => (v >= level ? maskColour : 0)), [h, w]);
    });
    rank();
  },
  async pca(still) {
    for (const image of images) {
      const [r, g, b] = components(image, get("scope").value === "each" ? image.pca : data.pca);
      paint(image, coloured(r, (v, i) => packed(v * 255, g[i] * 255, b[i] * 255)));
      if (!(await still())) return;
    }
  },
  async attention(still) {
    const head = Number(get("head").value);
    for (const image of images) {
      const query = state.queries.get(image) ?? null;
      if (!image.attention || (query === null && !image.attention.classToken)) { wipe(image); continue; }
      const map = attention(image, query, head), top = Math.max(...map);
      paint(image, coloured(map, (v) => heat(v / top)), image.attention.keys);
      if (!(await still())) return;
    }
  },
  async regions(still) {
    const count = Number(get("count").value), each = get("scope").value === "each";
    const shared = each ? null : centresOf(sampled(images, 4000), count);
    for (const image of images) {
      paint(image, coloured(regions(image, shared || centresOf(sampled([image], 700), count)), (k) => labelColours[k]));
      if (!(await still())) return;
    }
  },
};

async function layer(name) { // what Python drew: predictions, uncertainty, ground truth, errors
  for (const image of images) {
    wipe(image);
    if (!image.layers[name]) continue;
    const picture = new Image();
    picture.src = image.layers[name];
    await picture.decode();
    if (state.view !== name) return;
    [image.canvas.width, image.canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    image.context.drawImage(picture, 0, 0);
  }
}

async function show() {
  const run = ++state.run;
  let since = performance.now();
  document.documentElement.dataset.view = state.view;
  const still = async () => { // let the browser draw, and stop if something else is to be shown
    if (performance.now() - since > 30) { await new Promise((done) => setTimeout(done)); since = performance.now(); }
    return run === state.run;
  };
  for (const group of document.querySelectorAll(".of")) group.hidden = !group.dataset.of.split(" ").includes(state.view);
  for (const button of get("views").children) button.setAttribute("aria-pressed", button.dataset.view === state.view);
  get("legend").hidden = !data.legend.length || !/^(class )?(prediction|ground truth)$/.test(state.view);
  get("matches").hidden = state.view !== "similarity" || !state.points.length;
  if (state.view !== "similarity") images.forEach((i) => { i.save.hidden = true; i.score.textContent = i.caption; });
  marks();
  await (VIEWS[state.view] ? VIEWS[state.view](still) : layer(state.view));
}

// the best patch of each image, in the order of its score
function rank() {
  const found = images.filter((i) => i.best !== null).sort((a, b) => b.map[b.best] - a.map[a.best]);
  const sorted = get("sorted").checked;
  images.forEach((image) => { image.figure.style.order = ""; });
  if (sorted) found.forEach((image, place) => { image.figure.style.order = place; });
  const strip = get("matches");
  found.slice(0, 24).forEach((image, place) => {
    let button = strip.children[place];
    if (!button) {
      button = document.createElement("button");
      button.append(Object.assign(document.createElement("canvas"), { width: 64, height: 64 }), document.createElement("span"));
      strip.append(button);
    }
    const [h, w] = image.grid, side = (5 * image.picture.naturalWidth) / w;
    const x = ((image.best % w) + 0.5) / w, y = (Math.floor(image.best / w) + 0.5) / h, context = button.firstChild.getContext("2d");
    context.clearRect(0, 0, 64, 64);
    context.drawImage(image.picture, x * image.picture.naturalWidth - side / 2, y * image.picture.naturalHeight - side / 2, side, side, 0, 0, 64, 64);
    button.lastChild.textContent = image.map[image.best].toFixed(2);
    button.title = image.name;
    button.onclick = () => { image.figure.scrollIntoView({ block: "center", behavior: "smooth" }); image.frame.focus({ preventScroll: true }); };
  });
  while (strip.children.length > Math.min(24, found.length)) strip.lastChild.remove();
}

function marks() {
  document.querySelectorAll(".mark").forEach((mark) => mark.remove());
  const place = (image, patch, kind, text) => {
    const mark = Object.assign(document.createElement("span"), { className: `mark ${kind}`, textContent: text });
    mark.style.left = `${(((patch % image.grid[1]) + 0.5) / image.grid[1]) * 100}%`;
    mark.style.top = `${((Math.floor(patch / image.grid[1]) + 0.5) / image.grid[0]) * 100}%`;
    image.frame.append(mark);
  };
  if (state.view === "similarity") for (const p of state.points) place(p.image, p.patch, p.sign, p.sign === "plus" ? "+" : "−");
  if (state.view === "attention") for (const [image, patch] of state.queries) place(image, patch, "plus", "");
  if (state.cursor) place(state.cursor.image, state.cursor.patch, "cursor", "");
  get("query").textContent = state.queries.size ? "" : images.some((i) => i.attention && i.attention.classToken) ? "of the class token; click a patch" : "click a patch";
}

// ---- what a click does

function ask(image, patch, mode, moved = false) {
  const start = performance.now();
  if (state.view === "attention") {
    state.queries.set(image, patch);
  } else {
    if (state.view !== "similarity") state.view = "similarity";
    const last = state.points.at(-1);
    if (moved && last) state.points.pop();
    else if (mode === "set") state.points = [];
    const sign = moved && last ? last.sign : mode === "minus" ? "minus" : "plus", query = unit(image, patch);
    state.points.push({ image, patch, sign, maps: images.map((other) => cosines(query, other)) });
  }
  show();
  performance.measure("answer", { start, end: performance.now() });
}

function clear() {
  [state.points, state.queries, state.cursor] = [[], new Map(), null];
  show();
}

function patchAt(image, event) {
  const box = image.frame.getBoundingClientRect(), [h, w] = image.grid;
  const column = Math.floor(((event.clientX - box.left) / box.width) * w), row = Math.floor(((event.clientY - box.top) / box.height) * h);
  return Math.min(h - 1, Math.max(0, row)) * w + Math.min(w - 1, Math.max(0, column));
}

function listen(image) {
  const frame = image.frame;
  let held = null, start = 0; // the patch that a drag is at
  const modeOf = (event) => (event.shiftKey ? "plus" : event.altKey ? "minus" : state.mode);
  frame.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    [held, start] = [patchAt(image, event), event.clientX];
    if (event.pointerType === "mouse") { frame.setPointerCapture(event.pointerId); ask(image, held, modeOf(event)); }
  });
  frame.addEventListener("pointermove", (event) => {
    if (held === null) return;
    const patch = patchAt(image, event), touch = event.pointerType !== "mouse";
    if (patch === held || (touch && Math.abs(event.clientX - start) < 10)) return;
    ask(image, patch, modeOf(event), !touch || state.dragging === image);
    [held, state.dragging] = [patch, image];
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { held = null; setTimeout(() => (state.dragging = null)); });
  frame.addEventListener("click", (event) => { // of a touch: a tap, not the start of scrolling
    if (event.pointerType && event.pointerType !== "mouse" && state.dragging !== image) ask(image, patchAt(image, event), state.mode);
  });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const mode = { Enter: state.mode, " ": state.mode, "+": "plus", "-": "minus" }[event.key];
    const [h, w] = image.grid, at = state.cursor && state.cursor.image === image ? state.cursor.patch : Math.floor(h / 2) * w + Math.floor(w / 2);
    if (step) {
      const row = Math.min(h - 1, Math.max(0, Math.floor(at / w) + step[0])), column = Math.min(w - 1, Math.max(0, (at % w) + step[1]));
      state.cursor = { image, patch: row * w + column };
      marks();
    } else if (mode) ask(image, at, mode);
    else return;
    event.preventDefault();
  });
}

// ---- the page

function build(image) {
  const tag = (name, className, parent) => parent.appendChild(Object.assign(document.createElement(name), { className }));
  image.figure = tag("figure", "", get("gallery"));
  image.figure.style.setProperty("--aspect", image.width / image.height);
  image.frame = tag("div", "image", image.figure);
  Object.assign(image.frame, { tabIndex: 0, role: "img", ariaLabel: image.name });
  image.frame.style.aspectRatio = `${image.width} / ${image.height}`;
  image.picture = Object.assign(tag("img", "", image.frame), { src: image.thumbnail, alt: "", draggable: false });
  image.canvas = tag("canvas", "", image.frame);
  image.context = image.canvas.getContext("2d");
  const caption = tag("figcaption", "", image.figure), name = tag("span", "name", caption);
  [name.textContent, name.title] = [image.name, image.name];
  image.score = tag("span", "score", caption);
  image.save = Object.assign(tag("button", "", caption), { textContent: "save mask", hidden: true });
  image.save.onclick = () => saveMask(image, image.map);
  listen(image);
}

async function start() {
  const names = [...new Set(images.flatMap((image) => Object.keys(image.layers)))];
  const views = ["similarity", "pca", ...(images.some((i) => i.attention) ? ["attention"] : []), "regions", ...names];
  for (const view of views) {
    const button = Object.assign(document.createElement("button"), { textContent: view === "pca" ? "PCA" : view });
    button.dataset.view = view;
    button.onclick = () => { state.view = view; show(); };
    get("views").append(button);
  }
  for (const [name, colour] of data.legend) {
    const entry = document.createElement("span"), square = document.createElement("i");
    square.style.background = `rgb(${colour})`;
    entry.append(square, name);
    get("legend").append(entry);
  }
  images.forEach(build);
  await Promise.all(images.map(async (image) => {
    image.x = await inflate(image.features.text);
    Object.assign(image, { planes: image.features.planes, step: image.features.step, n: image.grid[0] * image.grid[1] });
    image.inverse = inverseLengths(image.x, image.n);
    if (image.attention) image.attention.x = await inflate(image.attention.text);
    await image.picture.decode();
  }));
  const heads = Math.max(0, ...images.map((i) => (i.attention ? i.attention.heads : 0)));
  for (let h = -1; h < heads; h++) get("head").append(new Option(h < 0 ? "mean of all" : h + 1, h));
  get("lead").textContent = data.lead;
  get("about").textContent = data.about;
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.onclick = () => {
      state.mode = button.dataset.mode;
      document.querySelectorAll("[data-mode]").forEach((b) => b.setAttribute("aria-pressed", b === button));
    };
  }
  const root = document.documentElement, outputs = () => document.querySelectorAll("output").forEach((o) => (o.value = get(o.htmlFor.value).value));
  for (const id of ["threshold", "masked", "sorted", "scope", "count", "head"]) get(id).addEventListener("input", () => { outputs(); show(); });
  get("opacity").addEventListener("input", () => root.style.setProperty("--opacity", get("opacity").value));
  get("size").addEventListener("input", () => root.style.setProperty("--wanted", `${get("size").value}px`));
  get("smooth").addEventListener("input", () => { root.classList.toggle("smooth", get("smooth").checked); show(); });
  get("clear").onclick = clear;
  get("theme").onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    if (event.key === "Escape") clear();
    const view = views[Number(event.key) - 1];
    if (view && !event.ctrlKey && !event.metaKey) { state.view = view; show(); }
  });
  outputs();
  state.view = names.length ? names[0] : "pca";
  await show();
  document.body.classList.remove("loading");
  root.dataset.ready = "yes";
}

start();
