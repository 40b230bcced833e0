// The connection: one WebSocket that comes back by itself, and tells what it is doing.

const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15000];
const SILENCE_FACTOR = 2.5; // heartbeats that may be missing before the connection counts as dead

export class Feed {
  // onFrame(frame) gets each frame that belongs to the present filter, onState({phase, retryMs, outageMs}) each change.
  constructor(onFrame, onState) {
    this.onFrame = onFrame;
    this.onState = onState;
    this.filter = {};
    this.attempt = 0;
    this.unanswered = 0;
    this.silenceMs = 30000;
    this.lostAt = null;
    this.connect();
  }

  // Follow something else from now on; frames of the old filter that are still on their way are passed over.
  setFilter(filter) {
    this.filter = filter;
    if (this.socket?.readyState === WebSocket.OPEN) this.request();
  }

  request() {
    this.unanswered += 1;
    this.socket.send(JSON.stringify({ filter: this.filter, snapshot: true }));
  }

  connect() {
    this.onState({ phase: "connecting" });
    const url = new URL("v1/live", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    this.socket = socket;
    this.unanswered = 0;
    this.watch();
    socket.addEventListener("open", () => this.request());
    socket.addEventListener("message", (message) => this.take(JSON.parse(message.data)));
    socket.addEventListener("close", () => this.socket === socket && this.lost());
  }

  take(frame) {
    this.watch();
    if (frame.heartbeat) this.silenceMs = frame.heartbeat.interval_s * 1000 * SILENCE_FACTOR;
    if (frame.filter || frame.error) {
      this.unanswered -= 1;
      if (this.unanswered === 0) {
        this.attempt = 0;
        this.onState({ phase: "live", outageMs: this.lostAt === null ? 0 : Date.now() - this.lostAt });
        this.lostAt = null;
      }
    }
    if (this.unanswered === 0 || frame.heartbeat) this.onFrame(frame);
  }

  watch() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => {
      this.socket.close();
      this.lost();
    }, this.silenceMs);
  }

  lost() {
    clearTimeout(this.watchdog);
    this.socket = null;
    this.lostAt ??= Date.now();
    // Jitter, so that not every page comes back in the same instant after a restart.
    const retryMs = BACKOFF_MS[Math.min(this.attempt, BACKOFF_MS.length - 1)] * (0.5 + Math.random());
    this.attempt += 1;
    this.onState({ phase: "waiting", retryMs });
    setTimeout(() => this.connect(), retryMs);
  }
}
