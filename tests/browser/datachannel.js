// A WHIP or WHEP client on libdatachannel, as OBS is one: node datachannel.js whip|whep URL PACKETS [ORDER].
// PACKETS: a file with Opus frames of 20 ms, each after its length in two bytes. ORDER: the parts that are offered, such as
// "audio,H264". It prints a line of JSON for all that happens; at the end of its input it goes, and says how.
const { readFileSync } = require("node:fs");
const { Audio, PeerConnection, Video, getLibraryVersion } = require("node-datachannel");

const [way, url, packets, order = "audio,H264"] = process.argv.slice(2);
const tell = (told) => console.log(JSON.stringify(told));
const direction = way === "whip" ? "SendOnly" : "RecvOnly";

const frames = [];
for (let data = readFileSync(packets); data.length; data = data.subarray(2 + data.readUInt16BE(0))) {
  frames.push(data.subarray(2, 2 + data.readUInt16BE(0)));
}

const peer = new PeerConnection("client", { iceServers: [], disableAutoNegotiation: true });
const counts = {};
const tracks = order.split(",").map((name, index) => {
  const part = name === "audio" ? new Audio(String(index), direction) : new Video(String(index), direction);
  if (name === "audio") part.addOpusCodec(111);
  else part[`add${name}Codec`](96 + index);
  if (way === "whip") part.addSSRC(1000 + index, "client", "stream", name);
  const track = peer.addTrack(part);
  counts[name] = 0;
  track.onMessage(() => { counts[name] += 1; });
  track.onOpen(() => tell({ open: name }));
  track.onClosed(() => tell({ closed: name }));
  return { name, track };
});

function send() {
  const { track } = tracks.find(({ name }) => name === "audio");
  const began = performance.now();
  let sent = 0;
  setInterval(() => {
    for (; sent * 20 < performance.now() - began; sent += 1) {
      const header = Buffer.from([0x80, 111, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
      header.writeUInt16BE(sent % 65536, 2);
      header.writeUInt32BE((960 * sent) % 2 ** 32, 4);
      header.writeUInt32BE(1000 + tracks.findIndex(({ name }) => name === "audio"), 8);
      if (track.isOpen()) track.sendMessageBinary(Buffer.concat([header, frames[sent % frames.length]]));
    }
  }, 10);
}

let session = null;
peer.onStateChange((state) => {
  tell({ state });
  if (state === "connected" && way === "whip") send();
});
peer.onGatheringStateChange(async (state) => {
  if (state !== "complete") return;
  const headers = { "Content-Type": "application/sdp" };
  const response = await fetch(url, { method: "POST", headers, body: peer.localDescription().sdp });
  const text = await response.text();
  tell({ status: response.status, text });
  if (response.status !== 201) process.exit(1);
  session = new URL(response.headers.get("Location"), url);
  try {
    peer.setRemoteDescription(text, "answer");
  } catch (error) {
    tell({ refused: String(error) });
    throw error;
  }
});
peer.setLocalDescription("offer");
setInterval(() => tell({ counts }), 200);

process.stdin.resume();
process.stdin.on("end", async () => {
  const response = session && (await fetch(session, { method: "DELETE" }));
  tell({ version: getLibraryVersion(), counts, deleted: response?.status });
  process.exit(0);
});
