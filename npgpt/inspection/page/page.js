"use strict";
// What all panels share: the data, the chosen token and head, and small pieces of the page.

window.onerror = (message, source, line) => {
  const place = document.getElementById("error");
  place.hidden = false;
  place.textContent = `The page could not be drawn: ${message} (line ${line})`;
};

const DATA = JSON.parse(document.getElementById("data").textContent);
const T = DATA.tokens.length;                            // and position T is the model's guess after the text
const unpacked = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const lerp = (from, to, share) => from.map((part, n) => Math.round(part + (to[n] - part) * share));

function make(tag, attributes = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...content);                                   // text stays text: nothing is read as HTML
  return element;
}

// What an arrow key moves in a table: [rows, columns].
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// State: whoever draws something registers with `follow`, and is called with the names of what changed.

const state = { token: DATA.target, layer: 0, head: 0, saliency: "sensitivity", maps: "map", cell: null };
const followers = [];
function follow(names, draw) { followers.push([names.split(" "), draw]); }
function set(changes) {
  const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
  Object.assign(state, changes);
  for (const [names, draw] of followers) if (names.some((name) => changed.includes(name))) draw();
}
const choose = (token) => set({ token: clamp(token, 0, T), cell: null });

// Colours are CSS variables of the theme, mixed here.

const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const channels = (name) => variable(name).split(" ").map(Number);
const shade = (name, share) => `rgb(var(--${name}) / ${Math.round(100 * clamp(share, 0, 1))}%)`;

// Words and numbers.

const nameOf = (n) => (n < T ? DATA.tokens[n].name : DATA.guess.name);
const code = (n) => make("code", {}, typeof n === "number" ? nameOf(n) : n);
function percent(p) {
  const value = 100 * p;
  if (value >= 99.95) return value >= 99.995 ? "100 %" : "99.9 %";
  if (value >= 10) return `${value.toFixed(0)} %`;
  return value >= 0.095 ? `${value.toFixed(1)} %` : value >= 0.0015 ? `${value.toFixed(3)} %` : "< 0.002 %";
}
function oneIn(bits) {
  if (bits < 1) return percent(2 ** -bits);
  const times = 2 ** bits;
  if (times >= 1e6) return `1 in ${times.toExponential(1)}`;
  return `1 in ${times < 10 ? times.toFixed(1) : Math.round(times).toLocaleString("en")}`;
}
function ordinal(n) {
  const end = n % 100 > 10 && n % 100 < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[n % 10] || "th";
  return `${n.toLocaleString("en")}${end}`;
}
function say(id, ...paragraphs) {
  byId(id).replaceChildren(...paragraphs.map((words) => make("p", {}, ...[words].flat())));
}

// Bars: rows of {name, share 0…1, value, colour, came}.

function bars(id, rows) {
  byId(id).replaceChildren(...rows.map((row) => {
    const fill = make("span", { class: "bar-fill" });
    fill.style.width = `${100 * row.share}%`;
    fill.style.background = row.colour;
    return make("div", { class: row.came ? "bar came" : "bar" },
      make("span", { class: "bar-name", title: row.name }, row.name),
      make("span", { class: "bar-track" }, fill), make("span", { class: "bar-value" }, row.value));
  }));
}

function legend(id, low, colours, high) {
  const ramp = make("span", { class: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  byId(id).replaceChildren(low, ramp, high);
}

// A strip: the text as buttons, one a token, and the guess after it. Only the chosen one is a tab stop.

function strip(id, label, guess = true) {
  const place = byId(id), buttons = [];
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", `${label}: arrow keys choose a token`);
  for (let n = 0; n < T + guess; n++) {
    const kind = n < T ? "token" : "token guess";
    const button = make("button", { type: "button", class: kind, "data-token": n }, nameOf(n));
    button.addEventListener("click", () => choose(n));
    buttons.push(button);
    place.append(button);
    if (n < T && DATA.tokens[n].breaks) place.append(make("br"));
  }
  place.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -T, End: T }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(Math.min(state.token, buttons.length - 1) + step);
    buttons[Math.min(state.token, buttons.length - 1)].focus();
  });
  const mark = () => buttons.forEach((button, n) => {
    const chosen = n === Math.min(state.token, buttons.length - 1);
    button.setAttribute("aria-pressed", chosen);
    button.tabIndex = chosen ? 0 : -1;
  });
  follow("token", mark);
  mark();
  return buttons;
}

// The top of the page.

byId("model").textContent = DATA.model;
byId("facts").textContent = [...DATA.facts, `${T} token${T > 1 ? "s" : ""} read`].join(" · ");
byId("notes").append(...DATA.notes.map((note) => make("p", {}, note)));
function drawChosen() {
  const n = state.token, about = n < T ? `position ${n}` : "the guess after the text";
  byId("chosen-token").replaceChildren(code(n), ` ${about}`);
  byId("previous").disabled = n === 0;
  byId("next").disabled = n === T;
}
follow("token", drawChosen);
byId("previous").addEventListener("click", () => choose(state.token - 1));
byId("next").addEventListener("click", () => choose(state.token + 1));
document.addEventListener("keydown", (event) => {
  if (event.target !== document.body || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft") choose(state.token - 1);
  if (event.key === "ArrowRight") choose(state.token + 1);
});

function wear(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  set({ theme });
}
const preference = window.matchMedia("(prefers-color-scheme: dark)");
preference.addEventListener("change", () => wear(preference.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => wear(state.theme === "dark" ? "light" : "dark"));
