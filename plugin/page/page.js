// The page: the live head over WHEP, one's own voice over WHIP, and the controls. No library, no build step.

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const asked = new URLSearchParams(location.search);
const clean = asked.get("view") === "clean";
root.classList.toggle("clean", clean);

const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const capital = (text) => text[0].toUpperCase() + text.slice(1);

// A text that is there already is not put there again: outputs and statuses are live, and would be read out once more.
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// --- the server

const TOKEN = "ifmdm-token";
let token = "";
try { token = sessionStorage.getItem(TOKEN) ?? ""; } catch { /* storage may be forbidden; then for this page only */ }

// ?token= (for OBS) or #token=, which no server ever sees; out of the address bar either way
const handed = asked.get("token") ?? new URLSearchParams(location.hash.slice(1)).get("token");
if (handed) {
  keepToken(handed);
  asked.delete("token");
  history.replaceState(null, "", location.pathname + (String(asked) ? `?${asked}` : ""));
}

function keepToken(value) {
  token = value;
  try { sessionStorage.setItem(TOKEN, value); } catch { /* as above */ }
}

class Refused extends Error {
  constructor(response, text) {
    super(text || `the server says ${response.status}`);
    this.status = response.status;
    this.wait = Number(response.headers.get("Retry-After")) || 0;
  }
}

// Where this page is: everything is below it, be it at "/", at "/sessions/ID/" or below a path of a proxy's.
const base = new URL(".", location.href);

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(new URL(path.replace(/^\//, ""), base), { ...options, headers });
  if (response.ok) return response;
  // what a proxy says of its own is a page of HTML, and nothing to show in a line
  const line = response.headers.get("Content-Type")?.startsWith("text/plain");
  const refused = new Refused(response, line ? (await response.text().catch(() => "")).trim() : "");
  if (refused.status === 401) await login();
  throw refused;
}

const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) });

let asking = null;
function login() {
  const wrong = token !== "";
  asking ??= new Promise((done) => {
    $("login-error").textContent = wrong ? "This is not the token." : "";
    $("token").value = "";
    $("login").addEventListener("cancel", (event) => event.preventDefault());
    $("login").onclose = () => { keepToken($("token").value.trim()); asking = null; done(); };
    $("login").showModal();
  });
  return asking;
}

// --- WebRTC

async function offer(peer) {
  await peer.setLocalDescription();
  // all candidates in the one offer, as WHEP and WHIP without trickle want it; a slow STUN server is not waited for
  const gathered = new Promise((done) => {
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && done();
    if (peer.iceGatheringState === "complete") done();
  });
  await Promise.race([gathered, sleep(1.5)]);
  return peer.localDescription.sdp;
}

// A WHEP or WHIP session: an offer goes to `path`, an answer comes back, and a DELETE ends it.
class Session {
  constructor(peer) { this.peer = peer; this.location = this.etag = null; this.over = false; }

  async open(path) {
    const body = await offer(this.peer);
    if (this.over) return;
    const response = await ask(path, { method: "POST", headers: { "Content-Type": "application/sdp" }, body });
    this.location = new URL(response.headers.get("Location"), response.url);
    this.etag = response.headers.get("ETag");
    if (this.over) return this.remove();
    await this.peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
  }

  // Resolves when the connection is lost.
  lost() {
    return new Promise((done) => {
      let timer;
      const look = () => {
        clearTimeout(timer);
        const state = this.peer.connectionState;
        if (state === "failed" || state === "closed") done();
        if (state === "disconnected") timer = setTimeout(done, 3000);
      };
      this.peer.addEventListener("connectionstatechange", look);
      this.end = done;
      look();
    });
  }

  async remove() {
    if (!this.location) return;
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const asked = fetch(this.location, { method: "DELETE", headers, keepalive: true }).catch(() => {});
    this.location = null;
    await asked;
  }

  // The peer says goodbye only when the server has answered, or it would have forgotten the session that it is asked
  // to end: a 404 in the console. It is not waited for longer than a second.
  close() {
    this.over = true;
    Promise.race([this.remove(), sleep(1)]).then(() => this.peer.close());
    this.end?.();
  }
}

async function connection() {
  const { ice_servers: servers } = await (await ask("/state")).json();
  return new RTCPeerConnection({ iceServers: servers, bundlePolicy: "max-bundle" });
}

// --- watching

const video = $("video");
let viewing = null;
let connected = false;
let gone = "Connecting";

async function watchOnce() {
  const peer = await connection();
  const session = (viewing = new Session(peer));
  const stream = new MediaStream();
  peer.addTransceiver("video", { direction: "recvonly" });
  peer.addTransceiver("audio", { direction: "recvonly" });
  // Both tracks wait alike, so that lips and voice meet from the first second on and not after ten.
  for (const receiver of peer.getReceivers()) {
    if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 100; // milliseconds
  }
  peer.ontrack = ({ track }) => {
    stream.addTrack(track);
    if (video.srcObject !== stream) video.srcObject = stream;
    play();
  };
  try {
    await session.open("/whep");
    const began = performance.now();
    const stopped = watchFrames(session, () => { connected = true; root.classList.add("has-picture"); });
    await Promise.race([session.lost(), stopped]);
    return performance.now() - began;
  } finally {
    connected = false;
    showStill();
    session.close();
  }
}

// Browsers show black where a stream was: the portrait is shown until pictures come again.
function showStill() {
  root.classList.remove("has-picture");
  mark(current);
}

// Resolves when pictures stop coming, however well the connection looks.
async function watchFrames(session, first) {
  let seen = -1, since = performance.now();
  while (!session.over) {
    await sleep(0.5);
    const frames = (await inbound(session.peer))?.framesDecoded ?? 0;
    if (frames > Math.max(seen, 0)) first();
    if (frames !== seen || document.hidden) { seen = frames; since = performance.now(); }
    if (performance.now() - since > 8000) return;
  }
}

async function inbound(peer) {
  for (const report of (await peer.getStats()).values()) {
    if (report.type === "inbound-rtp" && report.kind === "video") return report;
  }
  return null;
}

// A session that has ended does not come back. The head itself does: there a 404 is of a proxy that does not find it now.
const isOver = (error) => error.status === 404 && "session" in root.dataset;
let over = ""; // why, once it is

function finish(why) {
  over = capital(why);
  state = null;
  viewing?.end?.();
  if (speaking) stopSpeaking();
  if (telling) stopFile();
  $("upload").close();
  for (const each of document.querySelectorAll(".side button, .side input")) each.disabled = true;
  showStill();
  figures();
  show();
}

let hurry = () => {};
async function watch() {
  show();
  for (let failures = 0; !over; ) {
    let wait = 0;
    try {
      if ((await watchOnce()) > 5000) failures = 0;
      gone = "Reconnecting";
    } catch (error) {
      if (isOver(error)) return finish(error.message);
      // kept while it is asked again, so that it is not read out at every try
      gone = error.status === 503 ? capital(error.message) : error.status === 401 ? "Connecting" : "Reconnecting";
      wait = error.wait ?? 0;
      if (error.status === 401) failures = -1;
    }
    failures += 1;
    show();
    // 0.5, 1, 2, 4, 8 s, each a little different, so that not all come back at once
    const pause = Math.max(wait, Math.min(8, 0.25 * 2 ** failures)) * (0.75 + 0.5 * Math.random());
    if (failures && !over) await Promise.race([sleep(pause), new Promise((done) => { hurry = done; })]);
  }
}
addEventListener("online", () => hurry());
addEventListener("pagehide", () => { viewing?.close(); stopSpeaking(); });

// --- sound: browsers let a page make sound only after a gesture

let wanted = true;
async function play() {
  video.muted = !wanted || speaking !== null && !insisted;
  try {
    await video.play();
  } catch (error) {
    if (error.name === "NotAllowedError" && !video.muted) {
      video.muted = true;
      $("unmute").hidden = clean;
      await video.play().catch(() => {});
    }
  }
  showSound();
}

function setSound(on) {
  wanted = on;
  insisted = on;
  $("unmute").hidden = true;
  play();
}

function showSound() {
  $("sound").setAttribute("aria-pressed", String(!video.muted));
  icon("sound", video.muted ? "i-muted" : "i-sound");
}

const icon = (button, name) => $(button).querySelector("use").setAttribute("href", `#${name}`);
$("sound").onclick = () => setSound(video.muted);
$("unmute").onclick = () => setSound(true);
if (clean) addEventListener("pointerdown", () => setSound(true), { once: true });

// --- speaking

const HEARD = "The head says what you say. It is muted here meanwhile, so that you do not hear yourself twice.";
const UNHEARD = "Somebody else is speaking; you are heard when they stop.";
let speaking = null;
let insisted = false; // sound was turned on by hand while speaking

const ONE_VOICE = "The head speaks with one voice at a time: stop the other first.";

async function speak() {
  if (speaking) return stopSpeaking();
  if (telling) return note(ONE_VOICE, true);
  if (!navigator.mediaDevices?.getUserMedia) {
    return note("Browsers give the microphone to secure pages only. Open this page as http://localhost on the " +
      "computer that runs it, or put it behind HTTPS.", true);
  }
  const mine = (speaking = { session: null, stream: null, heard: -Infinity, on: false, out: false });
  insisted = false;
  button("Allow the microphone", true);
  note("");
  try {
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    mine.stream = await navigator.mediaDevices.getUserMedia({ audio });
    if (speaking !== mine) return release(mine);
    button("Connecting", true);
    const peer = await connection();
    mine.session = new Session(peer);
    if (speaking !== mine) return release(mine); // stopped meanwhile, which may be at each of these waits
    const [track] = mine.stream.getAudioTracks();
    peer.addTransceiver(track, { direction: "sendonly", streams: [mine.stream] });
    track.onended = () => speaking === mine && stopSpeaking("The microphone went away.");
    await mine.session.open("/whip");
    if (speaking !== mine) return release(mine);
    mine.session.lost().then(() => speaking === mine && stopSpeaking("The connection was lost. Press Speak to go on."));
    button("Stop", false, true);
    mine.on = true;
    note(HEARD);
    play();
    level(mine);
  } catch (error) {
    if (speaking !== mine) return release(mine);
    const why = {
      NotAllowedError: "The microphone is blocked. Allow it for this page in the address bar, then press Speak again.",
      NotFoundError: "There is no microphone. Plug one in, then press Speak again.",
      NotReadableError: "Another program holds the microphone. Close it there, then press Speak again.",
    }[error.name];
    stopSpeaking(why ?? (error.status === 401 ? "" : `Speaking does not work now: ${error.message}.`));
  }
}

// Whether somebody else has the floor, so that one's own voice goes unheard.
const outspoken = () => Boolean(speaking?.session?.etag && state?.guest && state.speaker !== speaking.session.etag);

// Tells a speaker when that changes.
function tellFloor() {
  if (!speaking?.on) return;
  const out = outspoken();
  if (out !== speaking.out) note(out ? UNHEARD : HEARD);
  speaking.out = out;
}

function release(mine) {
  mine.stream?.getTracks().forEach((track) => { track.onended = null; track.stop(); });
  mine.session?.close();
  mine.context?.close();
}

function stopSpeaking(why = "") {
  const mine = speaking;
  speaking = null;
  if (mine) release(mine);
  button("Speak", false);
  $("speak").style.setProperty("--level", 0);
  note(why, Boolean(why));
  play();
  show();
}

function button(label, busy, on = false) {
  $("speak-label").textContent = label;
  $("speak").classList.toggle("on", on);
  $("speak").setAttribute("aria-busy", String(busy));
}

let fading;
function note(text, bad = false) {
  clearTimeout(fading);
  if (bad) fading = setTimeout(note, 12_000, "");
  $("note").textContent = text;
  $("note").classList.toggle("bad", bad);
}

function level(mine) {
  const context = (mine.context = new AudioContext());
  const analyser = context.createAnalyser();
  analyser.fftSize = 512;
  context.createMediaStreamSource(mine.stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  let shown = 0;
  const draw = () => {
    if (speaking !== mine) return;
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    const heard = Math.min(1, Math.max(0, (10 * Math.log10(power + 1e-9) + 55) / 45));
    shown = Math.max(heard, 0.9 * shown);
    if (heard > 0.35) mine.heard = performance.now();
    $("speak").style.setProperty("--level", shown.toFixed(2));
    requestAnimationFrame(draw);
  };
  draw();
}

$("speak").onclick = speak;

// --- speaking a file: decoded here, and sent over the WebSocket (transports/websocket.py)

const RATE = 16_000; // Hz, as the head hears
const AHEAD = 4; // seconds: no more is under way when it is interrupted
const LARGEST = 50e6; // bytes: an hour, decoded, is what a page can hold
let telling = null;

async function speakFile(file) {
  if (speaking || telling) return note(ONE_VOICE, true);
  const mine = (telling = { socket: null, seconds: 0, started: null });
  note("");
  $("tell").textContent = "Stop the file";
  progress(mine);
  const why = await spoken(mine, file);
  if (telling === mine) endFile(why);
}

function endFile(why = "") {
  telling = null;
  $("tell").textContent = "Speak a file";
  $("telling").hidden = true;
  note(why, Boolean(why));
  show();
}

// Resolves when the server knows, too.
async function stopFile() {
  const { socket } = telling;
  endFile();
  if (!socket) return;
  const closed = new Promise((done) => socket.addEventListener("close", done));
  if (socket.readyState === WebSocket.OPEN) socket.send('{"type": "interrupt"}');
  socket.close(1000);
  await Promise.race([closed, sleep(1)]);
}

// Resolves when all of it is spoken, or nothing more will be: what there is to say about that.
async function spoken(mine, file) {
  if (file.size > LARGEST) return `${file.name} is larger than ${LARGEST / 1e6} MB. Cut it, or save it as MP3 or M4A.`;
  const sound = await decode(file).catch(() => null);
  if (!sound) return `${file.name} has no sound that the browser can read. Try a WAV, MP3 or M4A file.`;
  try {
    state = await (await ask("/state")).json();
  } catch (error) {
    return error.status === 401 ? "" : error.status ? `${capital(error.message)}.` : "The head cannot be reached now.";
  }
  if (telling !== mine) return "";
  if (state.guest) return "Somebody else is speaking. Try again when they have stopped.";
  mine.seconds = sound.samples.length / sound.channels / RATE;
  const address = new URL(`speak?rate=${RATE}&channels=${sound.channels}${token && `&token=${encodeURIComponent(token)}`}`, base);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = (mine.socket = new WebSocket(address));
  return new Promise((done) => {
    socket.onclose = ({ reason }) => done(reason ? `${capital(reason)}.` : "The head takes no file now. Try again in a moment.");
    socket.onmessage = ({ data }) => {
      const { type, seconds } = JSON.parse(data);
      if (type === "ready") send(socket, sound);
      if (type === "started") mine.started = performance.now();
      if (type !== "played" && type !== "interrupted") return;
      done(type === "interrupted" || seconds ? "" : "Nothing was heard: the file is silent, or somebody else was speaking.");
      if (type === "interrupted") socket.send('{"type": "interrupt"}'); // of what was under way meanwhile
      socket.close(1000);
    };
  });
}

// 16-bit samples of RATE, channels interleaved. They are mixed by the head (engine/downmix.py): a browser's mixer loses a
// voice that is the other way up in one of two channels, and all but the first of eight.
async function decode(file) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  const channels = Math.min(8, decoded.numberOfChannels);
  const samples = new Int16Array(channels * decoded.length);
  for (let channel = 0; channel < channels; channel += 1) {
    decoded.getChannelData(channel).forEach((sample, at) => {
      samples[at * channels + channel] = 32767 * Math.max(-1, Math.min(1, sample));
    });
  }
  return { samples, channels };
}

async function send(socket, { samples, channels }) {
  const began = performance.now(), second = RATE * channels, step = second / 2;
  for (let at = 0; at < samples.length; at += step) {
    const early = () => at / second > (performance.now() - began) / 1000 + AHEAD || socket.bufferedAmount > 4 * second;
    while (socket.readyState === WebSocket.OPEN && early()) await sleep(0.1);
    if (socket.readyState !== WebSocket.OPEN) return;
    socket.send(samples.subarray(at, at + step));
  }
  socket.send('{"type": "end"}');
}

function progress(mine) {
  if (telling !== mine) return;
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const out = mine.started === null ? 0 : Math.min(mine.seconds, (performance.now() - mine.started) / 1000);
  $("telling").hidden = false;
  if (mine.started === null) $("spoken").removeAttribute("value"); // it is prepared
  else $("spoken").value = out / mine.seconds;
  $("spoken-time").textContent = mine.seconds ? `${clock(out)} of ${clock(mine.seconds)}` : "";
  requestAnimationFrame(() => progress(mine));
}

$("tell").onclick = () => (telling ? stopFile() : $("recording").click());
$("recording").onchange = () => {
  const [file] = $("recording").files;
  $("recording").value = "";
  if (file) speakFile(file);
};

if (!clean) {
  const drops = (on) => (event) => {
    if (over || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    root.classList.toggle("dropping", on);
  };
  $("frame").ondragover = drops(true);
  $("frame").ondragleave = drops(false);
  $("frame").ondrop = (event) => {
    drops(false)(event);
    const [file] = event.dataTransfer.files;
    if (file && !over) speakFile(file);
  };
}

// --- the controls

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.status !== 401) note(error.status ? `${error.message}.` : "The head cannot be reached now.", true);
  }
}

const interrupt = () => attempt(async () => {
  if (telling) await stopFile(); // else what it speaks over would go on
  await ask("/interrupt", { method: "POST" });
});
$("hush").onclick = interrupt;
$("again").onclick = () => attempt(() => ask("/play", { method: "POST" }));

addEventListener("keydown", (event) => {
  if (clean || over || event.repeat || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  // inputs have an Escape of their own: it lets go of a slider in Firefox, and of the field in a screen reader
  if (event.key === "Escape" && !document.fullscreenElement && !event.target.closest("input")) interrupt();
  // letters are what people dictate and what screen readers take: ours only where the picture has the focus
  if (!$("frame").contains(event.target)) return;
  if (event.key === "m") setSound(video.muted);
  if (event.key === "f") full();
});

function full() {
  const frame = $("frame");
  if (document.fullscreenElement) return document.exitFullscreen();
  if (frame.requestFullscreen) return frame.requestFullscreen().catch(() => {});
  video.webkitEnterFullscreen?.(); // iPhones show videos only
}
$("full").onclick = full;
document.addEventListener("fullscreenchange", () => icon("full", document.fullscreenElement ? "i-small" : "i-full"));

// sliders: shown at once, sent a few times a second at most, the last one always
const ranges = ["intensity", "yaw", "pitch", "roll"];
let touched = 0;
let pending = null;

function showRange(id, value) {
  const range = $(id);
  range.value = value;
  range.style.setProperty("--part", `${(100 * (range.value - range.min)) / (range.max - range.min)}%`);
  say(`${id}-value`, id === "intensity" ? Number(value).toFixed(2) : `${Math.round(value)}°`);
}

function restyle() {
  touched = performance.now();
  pending ??= setTimeout(() => {
    pending = null;
    const [intensity, ...pose] = ranges.map((id) => Number($(id).value));
    attempt(() => post("/style", { intensity, pose }));
  }, 120);
}

for (const id of ranges) $(id).oninput = () => { showRange(id, $(id).value); restyle(); };
$("straight").onclick = () => { for (const id of ranges.slice(1)) showRange(id, 0); restyle(); };

// portraits
let current = "";

async function loadFaces() {
  const listed = await ask("/portraits");
  const { portrait, portraits } = await listed.json();
  const tiles = await Promise.all(portraits.map(async ({ name, picture }) => {
    const url = URL.createObjectURL(await (await ask(new URL(picture, listed.url).href)).blob());
    return tile(name, url, () => post("/portrait", { name }));
  }));
  for (const { src } of $("faces").querySelectorAll("img")) URL.revokeObjectURL(src);
  $("faces").replaceChildren(...tiles);
  $("add").hidden = false;
  mark(portrait);
}
$("add").onclick = () => $("file").click();

// use: asks the server for this portrait
function tile(name, url, use) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "face";
  button.dataset.name = name;
  button.setAttribute("role", "radio");
  const image = document.createElement("img");
  image.src = url;
  image.alt = { uploaded: "Your picture", own: "The picture of the start" }[name] ?? capital(name);
  button.title = image.alt;
  button.append(image);
  button.onclick = () => choose(name, use);
  button.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...$("faces").querySelectorAll('[role="radio"]')];
    all[(all.indexOf(button) + step + all.length) % all.length].focus();
  };
  return button;
}

const chosenFace = () => $("faces").querySelector('[aria-checked="true"]');

function mark(name) {
  current = name;
  const all = [...$("faces").querySelectorAll('[role="radio"]')];
  for (const each of all) each.setAttribute("aria-checked", String(each.dataset.name === name));
  const chosen = chosenFace();
  for (const each of all) each.tabIndex = each === (chosen ?? all[0]) ? 0 : -1;
  if (!root.classList.contains("has-picture") && chosen) $("frame").style.backgroundImage = `url(${chosen.firstChild.src})`;
}

let preparing = null; // the name of the one that the server prepares
let wish = null; // what was asked for last meanwhile: {name, use}
const changes = () => preparing !== null;

// The server prepares one at a time: of those that are asked for meanwhile the last one follows.
async function choose(name, use) {
  if (changes()) {
    wish = { name, use };
    return showBusy();
  }
  if (name === current) return;
  for (let next = { name, use }; next; next = wish?.name === current ? null : wish) {
    wish = null;
    preparing = next.name;
    showBusy();
    await attempt(async () => { await next.use(); mark(next.name); });
    preparing = null;
  }
  wish = null;
  showBusy();
}

function showBusy() {
  $("faces").setAttribute("aria-busy", String(changes()));
  for (const each of $("faces").children) {
    each.setAttribute("aria-busy", String([preparing, wish?.name].includes(each.dataset.name)));
  }
}

let shown = null; // the file that the preview shows
let chosen = null; // the same as it is sent, once it was found to be a picture
$("file").onchange = async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  forget();
  shown = file;
  $("consent").checked = false;
  $("upload-use").disabled = true;
  $("upload-error").textContent = "";
  $("preview").hidden = true; // until it is known to be a picture
  $("preview").src = URL.createObjectURL(file);
  $("upload").showModal();
  const picture = await fit(file).catch(() => null);
  if (shown !== file) return; // the consent is to another picture by now, or to none
  chosen = picture;
  $("preview").hidden = !chosen;
  if (!chosen) $("upload-error").textContent = "This file cannot be used. Choose a JPEG, PNG or WebP picture.";
  ready();
};

// What phones save is larger than needed, and sometimes of a kind that only they read.
async function fit(file) {
  const picture = await createImageBitmap(file);
  if (file.size < 4e6 && ["image/jpeg", "image/png", "image/webp"].includes(file.type)) return file;
  const scale = Math.min(1, 2000 / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

const ready = () => { $("upload-use").disabled = !($("consent").checked && chosen); };
$("consent").onchange = ready;
$("upload-cancel").onclick = () => $("upload").close();
// that it closed is told later, and it may be open again by then
$("upload").onclose = () => $("upload").open || forget();
function forget() {
  const url = $("preview").src;
  $("preview").removeAttribute("src");
  if (url) URL.revokeObjectURL(url);
  shown = chosen = null;
}
$("upload").querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  const body = chosen; // the dialog may be about another one when the answer comes
  $("upload-use").disabled = true;
  $("upload-error").textContent = "";
  try {
    await ask("/portrait?consent=true", { method: "POST", headers: { "Content-Type": body.type }, body });
  } catch (error) {
    const why = `${capital(error.message.replace(/^uploaded picture: /, ""))}.`;
    if (chosen !== body) return note(why, true);
    $("upload-error").textContent = why;
    return ready();
  }
  await loadFaces().catch(() => {}); // it is shown, whatever else fails
  if (chosen === body) $("upload").close();
};

// --- what is going on

let state = null;

function show() {
  const [kind, text] = over ? ["over", over]
    : !connected || !state ? ["away", connected ? "Reconnecting" : gone]
    : outspoken() ? ["guest", "Somebody else is speaking"]
    : telling?.started ? ["you", "Speaking your file"]
    : speaking ? ["you", performance.now() - speaking.heard < 1500 ? "You are speaking" : "Listening to you"]
    : state.guest ? ["guest", "A guest is speaking"]
    : state.speaking ? ["speaking", "Speaking"] : ["idle", "Idle"];
  root.dataset.state = kind;
  $("again").hidden = !state?.resting;
  say("state", text);
  // that the head speaks is heard: a screen reader need not talk over it
  say("told", ["over", "away", "guest"].includes(kind) ? text : "");
}

let last = null;
async function figures() {
  const report = connected && !over ? await inbound(viewing.peer).catch(() => null) : null;
  let buffered = 0;
  if (report && last && report.timestamp > last.timestamp) {
    const seconds = (report.timestamp - last.timestamp) / 1000;
    const fps = (report.framesDecoded - last.framesDecoded) / seconds;
    const emitted = report.jitterBufferEmittedCount - last.jitterBufferEmittedCount;
    if (emitted > 0) buffered = (report.jitterBufferDelay - last.jitterBufferDelay) / emitted;
    $("fps").textContent = `${Math.round(fps)} fps`;
  }
  if (!report) $("fps").textContent = "–";
  last = report;
  $("latency").textContent = state?.latency_seconds ? `${(state.latency_seconds + buffered).toFixed(2)} s` : "–";
  $("viewers").textContent = state ? String(state.viewers) : "–";
}

async function follow() {
  for (let failures = 0; !over; ) {
    if (!document.hidden) {
      try {
        state = await (await ask("/state")).json();
        tellFloor();
        if (performance.now() - touched > 1500) ["intensity", ...ranges.slice(1)].forEach((id, index) =>
          showRange(id, index ? state.pose[index - 1] : state.intensity));
        if (!$("faces").children.length) await loadFaces();
        else if (state.portrait !== current && !changes()) {
          mark(state.portrait);
          if (!chosenFace()) await loadFaces(); // somebody brought it
        }
        failures = 0;
      } catch (error) {
        if (isOver(error)) return finish(error.message);
        state = null;
        // the server went away: the connection finds out seconds later
        if (!error.status && ++failures === 2) viewing?.end?.();
      }
      await figures();
      show();
    }
    await sleep(1);
  }
}

if (!clean) {
  for (const id of ranges) showRange(id, $(id).value);
  follow();
}
watch();
