// Prints the events of a fan-out as JSON, one a line.   npm install zeromq apache-arrow
//   node fanout_reader.mjs tcp://127.0.0.1:5556 pump door      (beginnings of topics; none: everything)
// plugins/transport_zmq/FANOUT.md has every byte.
import { Subscriber } from "zeromq";
import { tableFromIPC } from "apache-arrow";

const [address = "tcp://127.0.0.1:5556", ...topics] = process.argv.slice(2);
const socket = new Subscriber();
socket.connect(address);
socket.subscribe(...(topics.length ? topics : [""]));

const seen = new Map(); // publisher and topic -> the sequence number that comes next
for await (const [topic, header, stream] of socket) {
  if (header.toString("latin1", 0, 4) !== "HRPB" || header[4] !== 1) continue;
  const key = header.toString("hex", 16, 32) + topic, sequence = header.readBigUInt64LE(32);
  const lost = sequence - (seen.get(key) ?? sequence);
  if (lost > 0n) console.error(`${topic}: ${lost} messages lost`);
  seen.set(key, sequence + 1n);
  for (const event of tableFromIPC(stream)) {
    console.log(JSON.stringify(event, (_, value) => (typeof value === "bigint" ? value.toString() : value)));
  }
}
