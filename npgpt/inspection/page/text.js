// Panels 1 and 2: the text coloured by surprisal, and by what the chosen token's prediction hung on.

const MOST_BITS = Math.max(8, Math.ceil(Math.max(...DATA.bits.slice(1))));
const LENS = DATA.lens, BEST = LENS.best, LAYERS = LENS.bits.length;        // the embedding and each layer
const topToken = new Uint32Array(unpacked(LENS.top).buffer);
const topChance = new Uint16Array(unpacked(LENS.chance).buffer);

// The best guesses of a layer at a position: [{name, p}], the best first.
function guesses(layer, position) {
  const start = (layer * T + position) * BEST;
  return Array.from({ length: BEST }, (_, k) => ({
    name: LENS.names[topToken[start + k]], index: topToken[start + k], p: topChance[start + k] / 65535 }));
}
const came = (position) => (position + 1 < T ? LENS.came[position + 1] : -1);         // what really followed

function guessBars(id, layer, position) {
  const right = came(position), list = guesses(layer, position);
  bars(id, list.map((guess) => ({
    name: guess.name, share: guess.p, value: percent(guess.p), colour: shade("sure", 0.9),
    came: guess.index === right })));
}

const surpriseTokens = strip("surprise-strip", "The text, coloured by surprise");
surpriseTokens.forEach((button, n) => {
  button.title = n === 0 ? "the first token: no prediction" : "the model’s guess";
  if (n === 0 || n === T) return;
  button.style.background = shade("surprise", DATA.bits[n] / MOST_BITS);
  button.title = `${DATA.bits[n].toFixed(2)} bits`;
});
legend("surprise-legend", "0 bits: expected", [shade("surprise", 0), shade("surprise", 1)],
  `${MOST_BITS} bits: 1 in ${(2 ** MOST_BITS).toLocaleString("en")}`);

function about(n) {
  const token = DATA.tokens[n], words = [`Token ${token.id}`];
  if (token.bytes) words.push(`, the byte${token.bytes.includes(" ") ? "s" : ""} ${token.bytes}`);
  if (token.cut) words.push(", part of ", code(token.cut));
  return [...words, "."];
}

function drawSurprise() {
  const n = state.token;
  if (n === 0) {
    say("surprise-say", [code(0), " is where the text begins: the model was not asked to foresee it."],
      about(0));
    bars("surprise-bars", []);
    return;
  }
  guessBars("surprise-bars", LAYERS - 1, n - 1);
  if (n === T) {
    const chance = percent(2 ** -DATA.bits[T]);
    say("surprise-say", ["After the whole text the model holds ", code(T), ` the most likely: ${chance}.`],
      ["The bars show its five best guesses."]);
    return;
  }
  const bits = DATA.bits[n], rank = LENS.rank[LAYERS - 1][n - 1];
  const mean = DATA.bits.slice(1, T).reduce((sum, each) => sum + each, 0) / (T - 1);
  say("surprise-say",
    [code(n), ` cost ${bits.toFixed(2)} bits: after `, code(n - 1),
      ` the model gave it a probability of ${oneIn(bits)}, `,
      rank === 0 ? "its first guess." : `its ${ordinal(rank + 1)} guess.`],
    about(n),
    [`On average a token of this text cost ${mean.toFixed(2)} bits; perplexity ${(2 ** mean).toFixed(1)}.`]);
}
follow("token", drawSurprise);

// Saliency: row n − 1 belongs to the prediction at position n, and has n values.

const saliencyTokens = strip("saliency-strip", "The text, coloured by saliency");
const packed = {
  sensitivity: unpacked(DATA.saliency.sensitivity), contribution: unpacked(DATA.saliency.contribution) };
function salience(n, kind) {
  const start = (n * (n - 1)) / 2, most = DATA.saliency[`${kind}_most`][n - 1];
  const shares = Array.from(packed[kind].subarray(start, start + n),
    (byte) => (kind === "sensitivity" ? byte / 255 : (byte - 128) / 127));
  return shares.map((share) => ({ share, value: share * most }));
}

function drawSaliency() {
  const n = state.token, kind = state.saliency, row = n > 0 ? salience(n, kind) : [];
  saliencyTokens.forEach((button, s) => {
    const cell = row[s], share = cell ? cell.share : 0;
    button.classList.toggle("later", s > n);
    button.style.background = shade(share < 0 ? "against" : "for", 0.85 * Math.abs(share));
    button.title = s === n ? "the prediction that is explained" : "later: no influence";
    if (cell) button.title = `${kind}: ${cell.value.toPrecision(2)}`;
  });
  if (n === 0) {
    say("saliency-say", [code(0), " follows nothing: choose a later token, to see what it hung on."]);
    bars("saliency-bars", []);
    return;
  }
  const order = row.map((cell, s) => ({ ...cell, s }));
  order.sort((a, b) => Math.abs(b.share) - Math.abs(a.share)).splice(6);
  const { s, value } = order[0], size = Math.abs(value).toPrecision(2);
  say("saliency-say", kind === "sensitivity"
    ? ["The log-probability of ", code(n), " reacts most to ", code(s), ` at position ${s}: pushing its `,
      `embedding a little, in the direction that counts most, moves it by ${size} nats per unit of length.`]
    : ["To first order, without ", code(s), ` at position ${s} the log-probability of `, code(n),
      ` would ${value > 0 ? "fall" : "rise"} by ${size} nats.`]);
  bars("saliency-bars", order.map((cell) => ({
    name: `${cell.s} ${nameOf(cell.s)}`, share: Math.abs(cell.share),
    value: cell.value.toPrecision(2).replace("-", "−"),
    colour: shade(cell.share < 0 ? "against" : "for", 0.9) })));
}
follow("token saliency", drawSaliency);
byId("saliency-switch").addEventListener("change", (event) => set({ saliency: event.target.value }));
