// The model: what is known of each device, and the totals. It knows nothing of the page.

export const DEVICES_MAX = 10000;
export const POINTS = 60;
const SERIES_MAX = 8; // numbers of a device whose values are kept
const DELAYS = 512;
const CLOCKS_DIFFER_MS = 500;
const PLACE = /(^|\.)(lat|lon|lng|latitude|longitude)$/i; // a line of these says little

export class Device {
  constructor(name) {
    this.name = name;
    this.origin = null;
    this.position = null;
    this.context = {};
    this.readings = {};
    this.names = []; // of the readings
    this.heardAt = 0; // when its newest event was received by the site, in this machine's time
    this.shown = null; // the reading that the sparkline follows
    this.series = new Map();
    this.taken = 0;
  }

  take(event, heardAt) {
    const again = event.position === this.position && event.origin === this.origin; // a snapshot repeats what is known
    this.origin = event.origin;
    this.position = event.position;
    this.context = event.context;
    this.readings = event.readings;
    this.heardAt = heardAt;
    this.order();
    if (!again) this.draw();
  }

  // Keep the numbers' last values, and choose the one whose line tells most: a level that goes up and down rather than a
  // counter or a constant. Chosen anew each time a series has filled, so that the line does not hop.
  draw() {
    for (const name of this.names) {
      if (!drawable(name, this.readings)) continue;
      let series = this.series.get(name);
      if (!series) {
        if (this.series.size === SERIES_MAX) continue;
        this.series.set(name, (series = []));
      }
      if (series.length === POINTS) series.shift();
      series.push(this.readings[name]);
    }
    this.taken += 1;
    if (this.shown === null || this.taken === 6 || this.taken % POINTS === 0) this.choose();
  }

  choose() {
    let most = this.shown === null ? -1 : turns(this.points);
    for (const [name, series] of this.series) {
      const here = turns(series);
      if (here > most) [this.shown, most] = [name, here];
    }
  }

  get points() {
    return this.series.get(this.shown) ?? [];
  }

  // The feed may give a device's readings in another order each time; here they keep their places.
  order() {
    const names = Object.keys(this.readings);
    if (names.length === this.names.length && this.names.every((name) => name in this.readings)) return;
    const stay = this.names.filter((name) => name in this.readings);
    this.names = [...stay, ...names.filter((name) => !stay.includes(name))];
  }

  get site() {
    const site = this.context.site;
    return site === undefined || site === null ? "" : String(site);
  }
}

function drawable(name, readings) {
  return typeof readings[name] === "number" && !PLACE.test(name);
}

// How often a line turns from up to down or back.
function turns(series) {
  let count = 0;
  let before = 0;
  for (let index = 1; index < series.length; index += 1) {
    const step = Math.sign(series[index] - series[index - 1]);
    if (step && before && step !== before) count += 1;
    if (step) before = step;
  }
  return count;
}

export class Fleet {
  constructor() {
    this.devices = new Map(); // the longest silent first
    this.missed = 0;
    this.arrived = 0; // events since `second` was last called
    this.rates = []; // events of each of the last seconds
    this.delays = new Float64Array(DELAYS);
    this.delayCount = 0;
    this.clockAhead = [];
    this.known = { site: new Set(), class: new Set(), type: new Set() };
  }

  // Forget all devices but these; returns the forgotten ones. What the filters can offer stays.
  keep(names) {
    const gone = [];
    for (const device of this.devices.values()) {
      if (names.has(device.name)) continue;
      this.devices.delete(device.name);
      gone.push(device);
    }
    return gone;
  }

  // How far this machine's clock seems to be ahead of the server's. Small differences are taken for the network's delay.
  clock(serverTime, now) {
    if (this.clockAhead.length === 10) this.clockAhead.shift();
    this.clockAhead.push(now - Date.parse(serverTime));
  }

  get clockAheadMs() {
    const least = Math.min(...this.clockAhead, Infinity);
    return Number.isFinite(least) && Math.abs(least) > CLOCKS_DIFFER_MS ? least : 0;
  }

  // Take an event; returns its device. Events of a snapshot are old news: they say nothing about rate and delay.
  take(event, now, fromSnapshot, clockAheadMs) {
    const heardAt = Date.parse(event.received) + clockAheadMs;
    if (!fromSnapshot) {
      this.arrived += 1;
      this.delays[this.delayCount % DELAYS] = Math.max(now - heardAt, 0);
      this.delayCount += 1;
    }
    let device = this.devices.get(event.device);
    if (device) this.devices.delete(event.device);
    else device = new Device(event.device);
    this.devices.set(event.device, device);
    device.take(event, heardAt);
    for (const field in this.known) {
      const value = event.context[field];
      if (value !== undefined && value !== null && this.known[field].size < 500) this.known[field].add(String(value));
    }
    return device;
  }

  // The devices beyond DEVICES_MAX that have been silent longest, forgotten.
  evict() {
    const gone = [];
    for (const device of this.devices.values()) {
      if (this.devices.size <= DEVICES_MAX) break;
      this.devices.delete(device.name);
      gone.push(device);
    }
    return gone;
  }

  // Close one second: its rate joins the last minute's.
  second(elapsedMs) {
    if (this.rates.length === 60) this.rates.shift();
    this.rates.push((this.arrived * 1000) / elapsedMs);
    this.arrived = 0;
  }

  // Events per second over the last five.
  get rate() {
    const last = this.rates.slice(-5);
    return last.reduce((sum, rate) => sum + rate, 0) / Math.max(last.length, 1);
  }

  get delayMs() {
    const count = Math.min(this.delayCount, DELAYS);
    return count ? this.delays.slice(0, count).sort()[count >> 1] : null;
  }

  active(now, withinMs) {
    let count = 0;
    for (const device of this.devices.values()) if (now - device.heardAt <= withinMs) count += 1;
    return count;
  }
}
