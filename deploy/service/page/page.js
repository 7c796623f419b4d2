// One query at a time: no framework, no storage, no request to anywhere but the service that sent this page.
"use strict";

const find = (id) => document.getElementById(id);
const show = (id, on) => { find(id).hidden = !on; };
const SVG = "http://www.w3.org/2000/svg";
let chosen = null;
let address = null;
let cameras = null;

// Characters that can't be seen, or change how others are shown (control, bidirectional, zero-width, half pairs), as an
// escape; domains/text.py does the same for terminals, logs and reports.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/gu;
function shown(text) {
  return String(text).replace(UNSEEN, (letter) => {
    const code = letter.codePointAt(0).toString(16);
    return code.length > 4 ? `\\U${code.padStart(8, "0")}` : code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
  });
}

// The only way in which text gets into the page.
function write(element, text) {
  element.textContent = shown(text);
}

function make(kind, name, text) {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text !== undefined) write(element, text);
  return element;
}

function headers() {
  const token = find("token").value.trim();
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function lookReady() {
  const state = find("state");
  try {
    const answer = await fetch("readyz");
    const facts = await answer.json();
    state.className = facts.ready ? "state ready" : "state wrong";
    write(state, facts.ready
      ? `${facts.entries.toLocaleString()} entries · ${facts.provider} · model ${facts.feature_space.slice(0, 8)}`
      : facts.state || "not ready");
  } catch {
    state.className = "state wrong";
    write(state, "the service is not responding");
  }
}

async function listCameras() {
  try {
    const answer = await fetch("v1/stats", { headers: headers() });
    if (!answer.ok) return;
    const facts = await answer.json();
    cameras = Object.keys(facts.cameras);
    find("cameras").replaceChildren(...cameras.map((name) => {
      const option = make("option");
      option.value = name;
      option.label = shown(name);
      return option;
    }));
  } catch { /* the list is only a help; names can also be typed */ }
}

// What is wrong with a camera's name, where it is known which there are.
function unknownCamera(name) {
  if (!name || !cameras || cameras.includes(name)) return "";
  if (!cameras.length) return `No entry is from the camera "${name}": the gallery is empty.`;
  const more = cameras.length > 20 ? ` and ${cameras.length - 20} more` : "";
  return `No entry is from the camera "${name}"; there are: ${cameras.slice(0, 20).join(", ")}${more}.`;
}

function choose(file) {
  if (!file) return;
  chosen = file;
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  find("preview").src = address;
  show("preview", true);
  show("hint", false);
}

function complain(text) {
  write(find("message"), text || "");
  show("message", Boolean(text));
}

// A local time typed here, as ISO 8601 with this computer's zone.
function withZone(text) {
  const moment = new Date(text);
  const minutes = -moment.getTimezoneOffset();
  const two = (value) => String(Math.floor(Math.abs(value))).padStart(2, "0");
  return `${text.length === 16 ? `${text}:00` : text}${minutes < 0 ? "-" : "+"}${two(minutes / 60)}:${two(minutes % 60)}`;
}

function figure() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 120 120");
  svg.setAttribute("aria-hidden", "true");
  const head = document.createElementNS(SVG, "circle");
  Object.entries({ cx: 60, cy: 38, r: 15 }).forEach(([name, value]) => head.setAttribute(name, value));
  const body = document.createElementNS(SVG, "path");
  body.setAttribute("d", "M30 98c0-24 12-38 30-38s30 14 30 38z");
  svg.append(head, body);
  return svg;
}

function card(match) {
  const item = make("li", "match");
  const picture = make("div", "picture");
  if (match.thumbnail && match.thumbnail.startsWith("data:image/jpeg;base64,")) {
    const image = make("img");
    image.src = match.thumbnail;
    image.alt = `Match ${match.rank}`;
    picture.append(image);
  } else {
    picture.append(figure());
  }
  picture.append(make("span", "rank", match.rank));
  const facts = make("div", "facts");
  const line = make("div", "line");
  const camera = make("span", "camera", match.camera);
  camera.title = shown(match.camera);
  line.append(camera, make("span", "score", match.score.toFixed(3)));
  const bar = make("div", "bar");
  const fill = make("i");
  fill.style.width = `${Math.max(0, Math.min(1, match.score)) * 100}%`;
  bar.append(fill);
  facts.append(line, bar);
  if (match.verdict) {
    const kind = match.verdict.startsWith("same") ? "same" : match.verdict.startsWith("no") ? "no" : "";
    facts.append(make("span", `verdict ${kind}`, match.verdict));
  }
  facts.append(make("span", "time", match.time ? match.time.replace("T", "  ") : "time unknown"));
  if (match.label) facts.append(make("span", "label", match.label));
  const source = make("bdi", "", match.source);
  const holder = make("span", "source");
  holder.title = shown(match.source);
  holder.append(source);
  facts.append(holder);
  item.append(picture, facts);
  return item;
}

async function search(event) {
  event.preventDefault();
  complain("");
  if (!chosen) { complain("Choose an image first."); return; }
  const camera = find("camera").value.trim();
  if (unknownCamera(camera)) await listCameras();  // it may be new
  if (unknownCamera(camera)) { complain(unknownCamera(camera)); return; }
  const form = new FormData();
  form.append("images", chosen);
  form.append("top", find("top").value);
  form.append("thumbnails", "true");
  for (const name of ["reason", "camera"]) if (find(name).value.trim()) form.append(name, find(name).value.trim());
  for (const name of ["after", "before"]) if (find(name).value) form.append(name, withZone(find(name).value));
  find("go").disabled = true;
  write(find("go"), "Searching …");
  const start = performance.now();
  try {
    const answer = await fetch("v1/query", { method: "POST", body: form, headers: headers() });
    const body = await answer.json();
    if (!answer.ok) { complain(body.error.message); return; }
    const matches = body.results[0].matches;
    find("matches").replaceChildren(...matches.map(card));
    show("empty", !matches.length);
    const warning = body.results[0].warning ? `${body.results[0].warning} · ` : "";
    const verdict = body.results[0].verdict && matches.length ? `${body.results[0].verdict} · ${warning}` : warning;
    const seconds = ((performance.now() - start) / 1000).toFixed(2);
    write(find("summary"), matches.length
      ? `${verdict}the ${matches.length} most similar · ${seconds} s · audit record ${body.record}`
      : `${warning}No entries match these filters · audit record ${body.record}`);
    show("summary", true);
    find("summary").scrollIntoView({ block: "nearest", behavior: "smooth" });
  } catch {
    complain("The service is not responding. Try again in a moment.");
  } finally {
    find("go").disabled = false;
    write(find("go"), "Search");
    lookReady();
  }
}

find("form").addEventListener("submit", search);
find("file").addEventListener("change", () => choose(find("file").files[0]));
find("token").addEventListener("change", listCameras);
const drop = find("drop");
for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); choose(event.dataTransfer.files[0]); });
lookReady();
listCameras();
