"use strict";
{ // The list of clips: only the rows in view are made, and only their thumbnails are read.
const AROUND = 4; // rows made above and below those in view
const MAX_PARTS = 8; // of thumbnails, kept when they are out of view
const ID = 0, DECISION = 1, RULE = 2, VALUE = 3, SOURCE = 4, START = 5, END = 6, CAPTION = 7, SCORES = 8;
const by = id => document.getElementById(id);
const index = JSON.parse(by("index").textContent);
const playing = new Set(index.playing);
const list = by("list"), inside = by("inside");
const texts = index.rows.map(row => [ID, DECISION, RULE, SOURCE, CAPTION].map(n => row[n]).join(" ").toLowerCase());
const parts = new Map();
let shown = [], made = "";

function element(name, className, text) {
  const out = document.createElement(name);
  out.className = className;
  if (text !== undefined) out.textContent = text; // what sources say is text, never markup
  return out;
}

function thumbnail(number) {
  const part = Math.floor(number / index.part);
  if (!parts.has(part)) {
    const held = by("part-" + part);
    parts.set(part, held ? JSON.parse(held.textContent) : []);
    if (parts.size > MAX_PARTS) parts.delete(parts.keys().next().value);
  }
  return parts.get(part)[number % index.part];
}

function scoreColumn(name) { return SCORES + index.scores.indexOf(name); }

function rowOf(number, top) {
  const clip = index.rows[number];
  const row = element("div", "row");
  row.style.top = top + "px";
  const picture = element("div", "picture");
  const jpeg = thumbnail(number);
  if (jpeg) {
    const image = element("img", "");
    image.alt = "";
    image.src = "data:image/jpeg;base64," + jpeg;
    picture.append(image);
  }
  if (playing.has(number)) {
    const button = element("button", "play", "▶");
    button.title = "play";
    button.addEventListener("click", () => play(number));
    picture.append(button);
  }
  const told = element("div", "told");
  const head = element("div", "");
  head.append(element("button", "id", clip[ID]), " ", element("span", clip[DECISION], clip[DECISION]));
  head.firstChild.title = "copy this id";
  if (clip[RULE]) head.append(clip[DECISION] === "failed" ? ": " + clip[RULE] : " by " + clip[RULE]);
  if (clip[VALUE] !== null) head.append(" " + clip[VALUE]);
  for (const name of new Set([by("score").value, by("sort").value])) {
    if (name) head.append(", " + name + " " + (clip[scoreColumn(name)] ?? "not scored"));
  }
  const span = clip[START] === null ? "" : clip[START].toFixed(2) + " to " + clip[END].toFixed(2) + " s, ";
  told.append(head, element("div", "soft line", span + clip[SOURCE]), element("div", "lines", clip[CAPTION]));
  row.append(picture, told);
  return row;
}

function draw() {
  const height = parseFloat(getComputedStyle(list).getPropertyValue("--row"));
  const first = Math.max(0, Math.floor(list.scrollTop / height) - AROUND);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + AROUND);
  const wanted = [first, last, height].join();
  if (wanted === made) return;
  made = wanted;
  inside.style.height = shown.length * height + "px";
  inside.replaceChildren(...shown.slice(first, last).map((number, n) => rowOf(number, (first + n) * height)));
}

function filter() {
  const words = by("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [decision, rule] = JSON.parse(by("decision").value || "[]");
  const score = by("score").value && scoreColumn(by("score").value);
  const least = by("least").value === "" ? -Infinity : Number(by("least").value);
  const most = by("most").value === "" ? Infinity : Number(by("most").value);
  by("least").disabled = by("most").disabled = !score;
  shown = [];
  index.rows.forEach((clip, n) => {
    if (decision && (clip[DECISION] !== decision || (rule && clip[RULE] !== rule))) return;
    if (score && (clip[score] === null || clip[score] < least || clip[score] > most)) return;
    if (words.every(word => texts[n].includes(word))) shown.push(n);
  });
  const order = by("sort").value && scoreColumn(by("sort").value);
  const sign = by("down").checked ? -1 : 1;
  const values = n => index.rows[n][order];
  if (!order) { if (sign < 0) shown.reverse(); }
  else shown.sort((a, b) => (values(a) === null) - (values(b) === null) || sign * (values(a) - values(b)) || a - b);
  by("hits").textContent = shown.length + " of " + index.rows.length;
  list.scrollTop = 0;
  made = "";
  draw();
}

function play(number) {
  const bytes = Uint8Array.from(atob(by("media-" + number).textContent), letter => letter.charCodeAt(0));
  const video = by("player").querySelector("video");
  video.src = URL.createObjectURL(new Blob([bytes], {type: "video/mp4"}));
  by("playing").textContent = index.rows[number][ID];
  by("player").showModal();
  video.play().catch(() => {}); // a browser that asks for a click has its controls
}

by("player").addEventListener("close", () => {
  const video = by("player").querySelector("video");
  URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  video.load();
});

function offer(select, value, text) {
  const option = element("option", "", text);
  option.value = value;
  by(select).append(option);
}

const counts = new Map();
for (const clip of index.rows) {
  for (const key of [[clip[DECISION]], [clip[DECISION], clip[RULE]]].filter(key => key.at(-1))) {
    const name = JSON.stringify(key);
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
}
for (const name of [...counts.keys()].sort()) {
  const [decision, rule] = JSON.parse(name);
  const said = rule ? decision + (decision === "failed" ? ": " : " by ") + rule : decision;
  offer("decision", name, said + " (" + counts.get(name) + ")");
}
for (const name of index.scores) { offer("score", name, name); offer("sort", name, name); }
by("filters").addEventListener("input", filter);
by("filters").addEventListener("submit", event => event.preventDefault());
list.addEventListener("scroll", draw, {passive: true});
window.addEventListener("resize", draw);
filter();
}
