// The model: what is known of each device, and the totals. It knows nothing of the page.

export const DEVICES_MAX = 10000;
export const POINTS = 60;
const DELAYS = 512;
const CLOCKS_DIFFER_MS = 500;

export class Device {
  constructor(name) {
    this.name = name;
    this.origin = null;
    this.position = null;
    this.context = {};
    this.readings = {};
    this.heardAt = 0; // when its newest event was received by the site, in this machine's time
    this.shown = null; // the reading that the sparkline follows
    this.points = [];
  }

  take(event, heardAt) {
    const again = event.position === this.position && event.origin === this.origin; // a snapshot repeats what is known
    this.origin = event.origin;
    this.position = event.position;
    this.context = event.context;
    this.readings = event.readings;
    this.heardAt = heardAt;
    this.shown = typeof event.readings[this.shown] === "number" ? this.shown : firstNumber(event.readings);
    if (this.shown === null || again) return;
    if (this.points.length === POINTS) this.points.shift();
    this.points.push(event.readings[this.shown]);
  }

  get site() {
    const site = this.context.site;
    return site === undefined || site === null ? "" : String(site);
  }
}

function firstNumber(readings) {
  for (const name in readings) if (typeof readings[name] === "number") return name;
  return null;
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
