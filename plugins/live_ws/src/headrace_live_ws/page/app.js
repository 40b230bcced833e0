// The page: takes frames from the feed into the fleet, and shows the fleet once per animation frame.

import { Feed } from "./feed.js";
import { Fleet } from "./fleet.js";
import { Grid } from "./grid.js";
import { count, duration, line } from "./draw.js";

const ACTIVE_MS = 30000;
const NOTICES_MAX = 4;
const TYPING_MS = 300;
const get = (id) => document.getElementById(id);

const fleet = new Fleet();
const grid = new Grid(get("fleet"));
const form = get("filters");
let accent = "";
let following = ""; // the filter that the server follows
let shown = ""; // the filter of what is on the page

// --- what the site tells

function onFrame(frame) {
  const now = Date.now();
  if (frame.heartbeat) fleet.clock(frame.heartbeat.time, now);
  else if (frame.events) takeEvents(frame.events, now, false);
  else if (frame.snapshot) takeSnapshot(frame.snapshot, now);
  else if (frame.gap) onGap(frame.gap);
  else if (frame.filter) following = JSON.stringify(frame.filter);
  else if (frame.error) notice(`The filter was refused: ${frame.error}.`);
}

function takeEvents(events, now, fromSnapshot) {
  const ahead = fleet.clockAheadMs;
  for (const event of events) grid.touch(fleet.take(event, now, fromSnapshot, ahead));
  for (const device of fleet.evict()) grid.remove(device);
}

// A snapshot follows each connect and each answer to a filter. Under a new filter it says which devices stay, with their lines.
// After a reconnect all stay: a server that was restarted knows less than this page.
function takeSnapshot(events, now) {
  if (following !== shown) {
    const names = new Set(events.map((event) => event.device));
    for (const device of fleet.keep(names)) grid.remove(device);
  }
  shown = following;
  takeEvents(events, now, true);
}

function onGap(gap) {
  fleet.missed += gap.events;
  notice(`${count(gap.events)} events were left out (${gap.reason}).`);
}

function onState(state) {
  get("state").dataset.phase = state.phase;
  if (state.phase === "waiting") get("state-text").textContent = `not connected, next try in ${duration(state.retryMs)}`;
  else get("state-text").textContent = state.phase;
  if (state.outageMs) notice(`Connected again after ${duration(state.outageMs)}; what came in between is not drawn.`);
}

function notice(text) {
  const paragraph = document.createElement("p");
  const clock = document.createElement("time");
  clock.textContent = new Date().toLocaleTimeString();
  paragraph.append(clock, ` ${text}`);
  get("notices").prepend(paragraph);
  while (get("notices").children.length > NOTICES_MAX) get("notices").lastChild.remove();
}

// --- filters: the form, the address bar and the subscription say the same

function wanted() {
  const filter = {};
  for (const [field, value] of new FormData(form)) if (value.trim()) filter[field] = [value.trim()];
  return filter;
}

function follow() {
  const filter = wanted();
  const address = new URL(location.href);
  address.search = new URLSearchParams(Object.entries(filter).map(([field, values]) => [field, values[0]])).toString();
  history.replaceState(null, "", address);
  feed.setFilter(filter);
}

function fillForm() {
  for (const [field, value] of new URL(location.href).searchParams) {
    const input = form.elements[field];
    if (!input || !value) continue;
    if (input.tagName === "SELECT") fleet.known[field].add(value);
    else input.value = value;
  }
  offer();
  for (const [field, value] of new URL(location.href).searchParams) if (form.elements[field]) form.elements[field].value = value;
}

// Offer in the lists what was seen so far.
function offer() {
  for (const field in fleet.known) {
    const select = form.elements[field];
    if (select.options.length - 1 === fleet.known[field].size) continue;
    const chosen = select.value;
    const options = [...fleet.known[field]].sort().map((value) => new Option(value, value));
    select.replaceChildren(select.options[0], ...options);
    select.value = chosen;
  }
}

// --- painting

function paint() {
  grid.paint(Date.now(), accent);
  requestAnimationFrame(paint);
}

let lastSecond = performance.now();
function second() {
  const now = Date.now();
  const elapsedMs = performance.now() - lastSecond;
  lastSecond += elapsedMs;
  fleet.second(elapsedMs);
  offer();
  grid.tick(now);
  const active = fleet.active(now, ACTIVE_MS);
  get("rate").textContent = fleet.rate < 10 ? String(Number(fleet.rate.toFixed(1))) : count(fleet.rate);
  get("devices").textContent = count(fleet.devices.size);
  get("active").textContent = fleet.devices.size ? `${count(active)} heard in 30 s` : "none heard yet";
  get("delay").textContent = fleet.delayMs === null ? "–" : duration(fleet.delayMs);
  get("missed").textContent = count(fleet.missed);
  get("missed-note").textContent = fleet.missed ? "events, see the notices" : "every event shown";
  get("missed-tile").classList.toggle("warn", fleet.missed > 0);
  get("empty").hidden = fleet.devices.size > 0 && !(grid.waiting.size && grid.shown);
  get("empty").textContent = emptyText();
  line(get("rate-line"), fleet.rates, 60, accent, true);
}

function emptyText() {
  if (grid.waiting.size && grid.shown) return `${count(grid.waiting.size)} more devices; filter to see them.`;
  return Object.keys(wanted()).length ? "No device that passes the filter was heard yet." : "Waiting for the first event.";
}

function readAccent() {
  accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  grid.repaint();
}

// --- start

fillForm();
readAccent();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readAccent);
let typing = 0;
form.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(follow, TYPING_MS);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(follow));
const feed = new Feed(onFrame, onState);
feed.setFilter(wanted());
requestAnimationFrame(paint);
setInterval(second, 1000);
