// Numbers and lines: how values are written and drawn.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return whole.format(value);
}

export function reading(value) {
  if (typeof value === "number") {
    const size = Math.abs(value);
    if (size >= 1e9 || (size > 0 && size < 1e-3)) return value.toExponential(2);
    if (Number.isInteger(value) || size >= 10000) return whole.format(value);
    return size >= 1000 ? value.toFixed(1) : value.toPrecision(4); // trailing zeros stay, so that the digits do not jump
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null) return "not a number";
  return typeof value === "string" ? value : JSON.stringify(value);
}

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

// A line of the last `slots` values, scaled to their own range (from zero where `zero`), with a dot at the newest.
export function line(canvas, values, slots, color, zero = false) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return;
  const scale = window.devicePixelRatio || 1;
  const pixelWidth = Math.round(width * scale);
  const pixelHeight = Math.round(height * scale);
  if (canvas.width !== pixelWidth || canvas.height !== pixelHeight) {
    canvas.width = pixelWidth;
    canvas.height = pixelHeight;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!values.length) return;
  let low = zero ? 0 : Infinity;
  let high = zero ? 1 : -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const flat = high === low;
  const x = (index) => width - 4 - ((values.length - 1 - index) * (width - 8)) / (slots - 1);
  const y = (value) => (flat ? height / 2 : height - 4 - ((value - low) / (high - low)) * (height - 8));
  pen.beginPath();
  for (let index = 0; index < values.length; index += 1) pen.lineTo(x(index), y(values[index]));
  pen.strokeStyle = color;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.stroke();
  if (values.length > 1) {
    pen.lineTo(x(values.length - 1), height);
    pen.lineTo(x(0), height);
    pen.globalAlpha = 0.12;
    pen.fillStyle = color;
    pen.fill();
    pen.globalAlpha = 1;
  }
  pen.beginPath();
  pen.arc(x(values.length - 1), y(values[values.length - 1]), 2, 0, 7);
  pen.fillStyle = color;
  pen.fill();
}
