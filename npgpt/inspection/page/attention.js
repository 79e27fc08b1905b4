// Panel 4: a small map of every head, and the chosen head's large one.

const ATTENTION = DATA.attention, HEADS = ATTENTION.heads, MAPS = ATTENTION.layers.length;
const weights = unpacked(ATTENTION.maps), TRIANGLE = (T * (T + 1)) / 2;
// The weights with which position t looks at 0 … t, as bytes: layer is a number among those kept.
const looks = (layer, head, t) => {
  const start = (layer * HEADS + head) * TRIANGLE + (t * (t + 1)) / 2;
  return weights.subarray(start, start + t + 1);
};
const looking = () => Math.min(state.token, T - 1);            // after the text, the last position looks
let ramp = [];                                                 // of a byte, its colour
function mixRamp() {
  const low = channels("low"), high = channels("high");
  ramp = Array.from({ length: 256 }, (_, byte) => lerp(low, high, Math.sqrt(byte / 255))); // faint ones show
  const stops = [0, 1, 2, 3, 4, 5, 6].map((n) => `rgb(${ramp[Math.round((255 * n) / 6)].join(" ")})`);
  legend("attention-legend", "weight 0", stops, "1, by its square root");
}

const SMALL = Math.min(T, 48);                                 // pixels: of more the strongest is shown
const small = [];
function drawHeads() {
  const place = byId("heads"), names = make("div", { class: "layer", "aria-hidden": "true" });
  names.append(make("span", { class: "layer-name" }, "head"));
  const room = Math.floor((place.clientWidth - 100) / HEADS) - 4;
  place.style.setProperty("--map", `${clamp(room, 34, 84)}px`);
  for (let head = 0; head < HEADS; head++) names.append(make("span", { class: "head-name" }, head));
  place.append(names);
  ATTENTION.layers.forEach((number, layer) => {
    const row = make("div", { class: "layer" }, make("span", { class: "layer-name" }, `layer ${number}`));
    small.push(Array.from({ length: HEADS }, (_, head) => {
      const canvas = make("canvas", { width: SMALL, height: SMALL }), name = `layer ${number}, head ${head}`;
      const told = { "aria-label": name, title: name };
      const button = make("button", { type: "button", class: "head", ...told }, canvas);
      button.addEventListener("click", () => set({ layer, head }));
      row.append(button);
      return { button, canvas };
    }));
    place.append(row);
  });
  place.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    const layer = clamp(state.layer + step[0], 0, MAPS - 1), head = clamp(state.head + step[1], 0, HEADS - 1);
    set({ layer, head });
    small[state.layer][state.head].button.focus();
  });
}
drawHeads();

function drawSmall() {
  const chosen = looking(), future = channels("future");
  small.forEach((row, layer) => row.forEach(({ canvas }, head) => {
    const pen = canvas.getContext("2d"), image = pen.createImageData(SMALL, SMALL);
    const strongest = new Int16Array(SMALL * SMALL).fill(-1);
    const row = state.maps === "row" ? looks(layer, head, chosen) : null;
    for (let t = 0; t < T; t++) {
      const line = row || looks(layer, head, t), y = Math.floor((t * SMALL) / T) * SMALL;
      for (let s = 0; s < line.length; s++) {
        const place = y + Math.floor((s * SMALL) / T);
        if (line[s] > strongest[place]) strongest[place] = line[s];
      }
    }
    strongest.forEach((byte, place) => image.data.set([...(byte < 0 ? future : ramp[byte]), 255], 4 * place));
    pen.putImageData(image, 0, 0);
  }));
}
function markHead() {
  small.forEach((row, layer) => row.forEach(({ button }, head) => {
    const chosen = layer === state.layer && head === state.head;
    button.setAttribute("aria-pressed", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }));
  const place = byId("heads"), seen = place.getBoundingClientRect();
  const box = small[state.layer][state.head].button.getBoundingClientRect();
  if (box.top < seen.top || box.bottom > seen.bottom) place.scrollTop += box.top - seen.top - seen.height / 2;
}

// The large map. `frame` is where it stands on its canvas, to find the cell under the pointer.
let frame = null;
function drawLarge(over = null) {
  const canvas = byId("head-map"), width = canvas.clientWidth, font = clamp((0.6 * width) / T, 9, 13);
  const letters = Math.min(14, Math.max(...DATA.tokens.map(({ name }) => name.length)));
  const label = Math.min(0.62 * font * letters + 12, 0.25 * width);
  const cell = (width - label - 2) / T, side = cell * T;
  const height = side + 0.87 * label + 8, { pen } = fresh(canvas, height);
  const { layer, head } = state, chosen = looking();
  frame = { left: label, cell };
  canvas.style.height = `${height}px`;
  pen.fillStyle = `rgb(${channels("future").join(" ")})`;
  pen.fillRect(label, 0, side, side);
  for (let t = 0; t < T; t++) {
    looks(layer, head, t).forEach((byte, s) => {
      pen.fillStyle = `rgb(${ramp[byte].join(" ")})`;
      pen.fillRect(label + s * cell, t * cell, cell + 0.3, cell + 0.3);
    });
  }
  const every = Math.ceil((font + 1) / cell), shown = (n) => n % every === 0 || n === chosen;
  const clear = (n) => n === chosen || Math.abs(n - chosen) >= every;        // room for the chosen one's name
  pen.font = `${font}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace`;
  pen.textBaseline = "middle";
  for (let n = 0; n < T; n++) {
    if (!shown(n) || !clear(n)) continue;
    const name = nameOf(n).length > 14 ? `${nameOf(n).slice(0, 13)}…` : nameOf(n);
    pen.fillStyle = n === chosen ? variable("ink") : variable("soft");
    pen.textAlign = "right";
    pen.fillText(name, label - 5, (n + 0.5) * cell, label - 6);
    pen.save();
    pen.translate(label + (n + 0.5) * cell, side + 6);
    pen.rotate(-Math.PI / 3);
    pen.fillText(name, 0, 0, label);
    pen.restore();
  }
  pen.strokeStyle = variable("accent");
  pen.lineWidth = 2;
  pen.strokeRect(label, chosen * cell, (chosen + 1) * cell, cell);
  if (over) {
    pen.strokeStyle = variable("ink");
    pen.strokeRect(label + over[1] * cell, over[0] * cell, cell, cell);
  }
  const name = `Layer ${ATTENTION.layers[layer]}, head ${head}`;
  byId("head-name").textContent = name;
  canvas.setAttribute("aria-label", `${name}: attention map; the chosen token’s row is told below`);
}

const attentionTokens = strip("attention-strip", "The text, coloured by the chosen head's attention", false);
function drawLooks(over = null) {
  const t = over ? over[0] : looking(), row = looks(state.layer, state.head, t);
  const weight = (s) => (row[s] / 255).toFixed(2);
  if (over) {
    const s = over[1];
    say("attention-say", [code(t), ` (${t}) looks at `, code(s), ` (${s}) with weight ${weight(s)}.`]);
  } else {
    const order = Array.from(row, (byte, s) => ({ p: byte / 255, s })).sort((a, b) => b.p - a.p);
    const most = order.slice(0, 3).filter(({ p }) => p > 0);
    const list = most.flatMap(({ p, s }, n) => [n ? ", " : " ", code(s), ` (${s}) ${percent(p)}`]);
    say("attention-say", ["From ", code(t), ` (${t}) this head looks most at`, ...list, "."]);
  }
  attentionTokens.forEach((button, s) => {
    button.style.background = shade("high", s <= t ? (0.55 * row[s]) / 255 : 0);
    button.classList.toggle("later", s > t);
    button.title = s <= t ? `weight ${weight(s)}` : "later: unseen";
  });
}

function cellUnder(event) {
  const box = byId("head-map").getBoundingClientRect();
  const t = Math.floor((event.clientY - box.top) / frame.cell);
  const s = Math.floor((event.clientX - box.left - frame.left) / frame.cell);
  return t >= 0 && t < T && s >= 0 && s <= t ? [t, s] : null;
}
const large = byId("head-map");
function drawChosenHead(over = null) {
  drawLarge(over);
  drawLooks(over);
}
large.addEventListener("pointermove", (event) => drawChosenHead(cellUnder(event)));
large.addEventListener("pointerleave", () => drawChosenHead());
large.addEventListener("click", (event) => {
  const over = cellUnder(event);
  if (over) choose(over[0]);
});
large.addEventListener("keydown", (event) => {
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (step) { event.preventDefault(); choose(looking() + step); }
});
byId("attention-switch").addEventListener("change", (event) => set({ maps: event.target.value }));

follow("theme", mixRamp);
follow("theme maps", drawSmall);
follow("token", () => { if (state.maps === "row") drawSmall(); });
follow("layer head", markHead);
follow("token layer head theme", () => drawChosenHead());

// The head shown first: the one that looks most at single tokens other than the first, the last and itself.
function interesting() {
  let best = [-1, 0, 0];
  for (let layer = 0; layer < MAPS; layer++) {
    for (let head = 0; head < HEADS; head++) {
      let sum = 0;
      for (let t = 3; t < T; t++) sum += Math.max(...looks(layer, head, t).subarray(1, t - 1)) / 255;
      if (sum > best[0]) best = [sum, layer, head];
    }
  }
  return { layer: best[1], head: best[2] };
}

// Begin: the theme asked for by the address's end (#dark, #light), else the reader's; then draw all.
Object.assign(state, interesting());
const asked = location.hash.slice(1);
drawChosen();
drawSurprise();
drawSaliency();
markHead();
wear(["dark", "light"].includes(asked) ? asked : preference.matches ? "dark" : "light");
showColumn();
window.addEventListener("resize", () => { drawLarge(); drawLens(); });
document.documentElement.dataset.drawn = "yes";
