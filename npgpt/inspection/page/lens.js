// Panel 3: the logit lens, a table with a row for each layer, and the guesses of the cell that is looked at.

const layerName = (layer) => (layer === 0 ? "embedding" : `layer ${layer - 1}`);
const lensCells = [], lensHeads = [];

function drawTable() {
  const head = make("tr", {}, make("th", { class: "corner", scope: "row" }, "reads"));
  const foot = make("tr", {}, make("th", { class: "corner", scope: "row" }, "came next"));
  for (let t = 0; t < T; t++) {
    const above = make("th", { scope: "col", title: `position ${t}` }, nameOf(t));
    const below = make("th", {}, t + 1 < T ? nameOf(t + 1) : "?");
    lensHeads.push([above, below]);
    head.append(above);
    foot.append(below);
  }
  const body = make("tbody");
  for (let layer = 0; layer < LAYERS; layer++) {
    const row = make("tr", {}, make("th", { scope: "row" }, layerName(layer))), cells = [];
    for (let t = 0; t < T; t++) {
      const [guess] = guesses(layer, t), right = guess.index === came(t);
      const told = `${layerName(layer)}, after ${nameOf(t)}: ${guess.name}, ${percent(guess.p)}`;
      const cell = make("td", { tabindex: -1, class: right ? "right" : "", "data-layer": layer,
        "data-position": t, "aria-label": right ? `${told}, right` : told }, guess.name);
      cell.style.background = shade("sure", 0.75 * guess.p);
      cells.push(cell);
      row.append(cell);
    }
    lensCells.push(cells);
    body.append(row);
  }
  byId("lens-table").append(make("thead", {}, head), body, make("tfoot", {}, foot));
}
drawTable();

// The cell looked at: the one under the pointer or the focus, else the last layer's before the chosen token.
const lookedAt = () => state.cell || [LAYERS - 1, Math.max(0, state.token - 1)];
const cellOf = (target) => {
  const cell = target.closest && target.closest("td");
  return cell ? [Number(cell.dataset.layer), Number(cell.dataset.position)] : null;
};
let marked = null;
function drawLens() {
  const [layer, t] = lookedAt(), column = Math.max(0, state.token - 1);
  lensHeads.forEach((pair, n) => pair.forEach((cell) => cell.classList.toggle("column", n === column)));
  if (marked) { marked.classList.remove("at"); marked.tabIndex = -1; }
  marked = lensCells[layer][t];
  marked.classList.add("at");
  marked.tabIndex = 0;
  guessBars("lens-bars", layer, t);
  const rank = LENS.rank[layer][t] + 1, chance = oneIn(LENS.bits[layer][t]);
  say("lens-say", [layer === 0 ? "From the embedding alone" : `After ${layerName(layer)}`,
    ", having read up to ", code(t), ` (position ${t}), the best guess is `,
    code(guesses(layer, t)[0].name), ".",
    ...(t + 1 < T ? [" What came next, ", code(t + 1), `, is guess ${rank} here, at ${chance}.`] : [])]);
  drawCurve(t, layer);
}
const table = byId("lens-table");
function look(event) {
  const cell = cellOf(event.target);
  if (cell) set({ cell });
}
function pick(event) {
  const cell = cellOf(event.target);
  if (!cell) return;
  choose(cell[1] + 1);                                          // what was to be foreseen there
  set({ cell });
}
table.addEventListener("pointerover", look);
table.addEventListener("focusin", look);
table.addEventListener("pointerleave", () => set({ cell: null }));
table.addEventListener("click", pick);
table.addEventListener("keydown", (event) => {
  const step = ARROWS[event.key], enter = event.key === "Enter" || event.key === " ";
  const cell = cellOf(event.target);
  if (!cell || !(step || enter)) return;
  event.preventDefault();
  if (enter) {
    pick(event);
    return;
  }
  const layer = clamp(cell[0] + step[0], 0, LAYERS - 1), t = clamp(cell[1] + step[1], 0, T - 1);
  set({ cell: [layer, t] });
  lensCells[layer][t].focus();
});
follow("token cell theme", drawLens);

// In the middle of the table's window, without moving the page.
function showColumn() {
  const cell = lensCells[0][Math.max(0, state.token - 1)], place = byId("lens-scroll");
  place.scrollLeft = cell.offsetLeft - place.clientWidth / 2 + cell.clientWidth / 2;
}
follow("token", showColumn);

// A curve over the layers: the probability of the token that really came, or of the guess after the text.
function drawCurve(t, layer) {
  const canvas = byId("lens-curve"), what = nameOf(t + 1), bits = LENS.bits.map((row) => row[t]);
  const { pen, width, height } = fresh(canvas);
  const left = 44, right = 8, top = 22, bottom = 20, ink = variable("soft"), line = variable("line");
  const x = (n) => left + ((width - left - right) * n) / Math.max(1, LAYERS - 1);
  const y = (p) => height - bottom - (height - top - bottom) * p;
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = ink;
  pen.fillText(`Probability of ${what} by layer`, 0, 12, width);
  for (const p of [0, 0.5, 1]) {
    pen.strokeStyle = line;
    pen.beginPath(); pen.moveTo(left, y(p)); pen.lineTo(width - right, y(p)); pen.stroke();
    pen.textAlign = "right";
    pen.fillText(`${100 * p} %`, left - 4, y(p) + 4);
  }
  pen.textAlign = "left"; pen.fillText("embedding", left, height - 5);
  pen.textAlign = "right"; pen.fillText(layerName(LAYERS - 1), width - right, height - 5);
  pen.strokeStyle = pen.fillStyle = `rgb(${channels("sure").join(" ")})`;
  pen.lineWidth = 2;
  pen.beginPath();
  bits.forEach((each, n) => pen.lineTo(x(n), y(2 ** -each)));
  pen.stroke();
  pen.beginPath(); pen.arc(x(layer), y(2 ** -bits[layer]), 4.5, 0, 7); pen.fill();
  const [first, last] = [bits[0], bits[LAYERS - 1]].map((each) => percent(2 ** -each));
  canvas.setAttribute("aria-label", `Probability of ${what} after each layer, from ${first} to ${last}`);
}

// A canvas of its size on the page, with sharp pixels.
function fresh(canvas, height = canvas.clientHeight) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return { pen, width, height };
}
