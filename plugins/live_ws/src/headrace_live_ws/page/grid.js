// The devices on the page: a section for each site, a card for each device. Only cards in sight are kept up to date;
// the others were filled once, and are again when they come into sight.
// Everything that a device sends reaches the page as text (textContent), never as markup.

import { POINTS } from "./fleet.js";
import { count, duration, line, reading } from "./draw.js";

const CARDS_MAX = 3000;
const CARDS_PER_FRAME = 60;
const READINGS_SHOWN = 4;
const QUIET_MS = 30000;
const order = new Intl.Collator("en", { numeric: true });

function element(tag, className, parent, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

class Card {
  constructor(device) {
    this.device = device;
    this.visible = false;
    this.root = element("article", "card");
    const head = element("header", "", this.root);
    element("h3", "", head, device.name);
    this.age = element("span", "age", head);
    this.kind = element("p", "kind", this.root);
    this.values = element("dl", "", this.root);
    this.rows = [];
    this.root.card = this;
  }

  show(visible) {
    this.visible = visible;
    if (visible && !this.canvas) {
      this.canvas = element("canvas", "spark", this.root);
      this.canvas.setAttribute("role", "img");
      this.label();
    } else if (!visible && this.canvas) {
      this.canvas.remove(); // a canvas costs memory that a card out of sight need not hold
      this.canvas = null;
    }
  }

  update(now, color) {
    const { device } = this;
    setText(this.kind, [device.context.class, device.context.type].filter(Boolean).join(" · "));
    const { names } = device;
    const shown = names.slice(0, names.length > READINGS_SHOWN ? READINGS_SHOWN - 1 : READINGS_SHOWN);
    shown.forEach((name, index) => this.row(index, name, reading(device.readings[name])));
    if (names.length > shown.length) this.row(shown.length, "more readings", String(names.length - shown.length));
    const used = Math.min(names.length, READINGS_SHOWN);
    while (this.rows.length > used) this.rows.pop().root.remove();
    this.tell(now);
    if (this.canvas) {
      this.label();
      line(this.canvas, device.points, POINTS, color);
    }
  }

  label() {
    const { shown } = this.device;
    const text = shown === null ? "no number to draw" : `recent values of ${shown}`;
    if (this.canvas.ariaLabel !== text) this.canvas.ariaLabel = this.canvas.title = text;
  }

  row(index, name, value) {
    let row = this.rows[index];
    if (!row) {
      const root = element("div", "", this.values);
      row = { root, name: element("dt", "", root), value: element("dd", "", root) };
      this.rows[index] = row;
    }
    setText(row.name, name);
    setText(row.value, value);
    row.root.classList.toggle("drawn", name === this.device.shown);
  }

  tell(now) {
    const ageMs = Math.max(now - this.device.heardAt, 0);
    setText(this.age, ageMs < 3000 ? "now" : duration(ageMs));
    this.root.classList.toggle("quiet", ageMs > QUIET_MS);
  }
}

class Site {
  constructor(name, parent) {
    this.name = name;
    this.root = element("section", "site");
    const heading = element("h2", "", this.root, name === "" ? "no site" : name);
    this.total = element("span", "", heading);
    this.cards = element("div", "cards", this.root);
    this.names = [];
    parent.append(this.root);
  }

  add(card) {
    const at = place(this.names, card.device.name);
    this.names.splice(at, 0, card.device.name);
    this.cards.insertBefore(card.root, this.cards.children[at] ?? null);
    this.tell();
  }

  remove(card) {
    this.names.splice(place(this.names, card.device.name), 1);
    card.root.remove();
    this.tell();
  }

  tell() {
    setText(this.total, ` ${count(this.names.length)} ${this.names.length === 1 ? "device" : "devices"}`);
  }
}

// Where a name belongs in a sorted list.
function place(names, name) {
  let low = 0;
  let high = names.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (order.compare(names[middle], name) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class Grid {
  constructor(root) {
    this.root = root;
    this.sites = new Map();
    this.cards = new Map();
    this.waiting = new Map();
    this.dirty = new Set();
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        entry.target.card.show(entry.isIntersecting);
        this.dirty.add(entry.target.card.device);
      }
    }, { rootMargin: "200px" });
  }

  get shown() {
    return this.cards.size;
  }

  touch(device) {
    this.dirty.add(device);
    if (!this.cards.has(device.name)) this.waiting.set(device.name, device);
  }

  remove(device) {
    const card = this.cards.get(device.name);
    this.waiting.delete(device.name);
    this.dirty.delete(device);
    if (!card) return;
    this.observer.unobserve(card.root);
    this.cards.delete(device.name);
    this.leave(card);
  }

  // One frame's work: some new cards, and whatever changed in sight.
  paint(now, color) {
    let room = Math.min(CARDS_PER_FRAME, CARDS_MAX - this.cards.size);
    for (const device of this.waiting.values()) {
      if (room <= 0) break;
      room -= 1;
      this.waiting.delete(device.name);
      const card = new Card(device);
      this.cards.set(device.name, card);
      this.enter(card);
      this.observer.observe(card.root);
    }
    for (const device of this.dirty) {
      const card = this.cards.get(device.name);
      if (card && card.site !== device.site) {
        this.leave(card);
        this.enter(card);
      }
      if (card?.visible || card?.rows.length === 0) card.update(now, color);
    }
    this.dirty.clear();
  }

  // Ages grow although nothing arrives.
  tick(now) {
    for (const card of this.cards.values()) if (card.visible) card.tell(now);
  }

  repaint() {
    for (const card of this.cards.values()) this.dirty.add(card.device);
  }

  enter(card) {
    const name = card.device.site;
    card.site = name;
    let site = this.sites.get(name);
    if (!site) {
      site = new Site(name, this.root);
      this.sites.set(name, site);
      const sorted = [...this.sites.keys()].sort(order.compare);
      const next = this.sites.get(sorted[sorted.indexOf(name) + 1]);
      if (next) this.root.insertBefore(site.root, next.root);
    }
    site.add(card);
  }

  leave(card) {
    const site = this.sites.get(card.site);
    site.remove(card);
    if (site.names.length === 0) {
      site.root.remove();
      this.sites.delete(card.site);
    }
  }
}
