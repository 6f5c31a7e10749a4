// Put into a page before its own scripts: keeps its peer connections, and measures what a viewer gets of the head.
(() => {
  const peers = [];
  const Native = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Native {
    constructor(...given) { super(...given); peers.push(this); }
  };
  const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? null;

  // The reports on what comes in, of the connection that is connected: {video, audio, local (the kind of our address)}
  async function inbound() {
    const found = {};
    for (const peer of peers.filter((each) => each.connectionState === "connected")) {
      const reports = await peer.getStats();
      for (const report of reports.values()) {
        if (report.type === "inbound-rtp") found[report.kind] = { ...report, codec: reports.get(report.codecId)?.mimeType };
      }
    }
    return found;
  }

  // Calls back with every picture that is presented, until the function that is returned is called.
  function frames(video, told) {
    let going = true;
    const next = (now, about) => { if (going) { told(now, about); video.requestVideoFrameCallback(next); } };
    video.requestVideoFrameCallback(next);
    return () => { going = false; };
  }

  // Reads a part of the picture, {left, top, width, height} in 0..1, as columns x rows of grey in 0..255.
  function reader(video, box, columns, rows) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    return () => {
      const [w, h] = [video.videoWidth, video.videoHeight];
      context.drawImage(video, box.left * w, box.top * h, box.width * w, box.height * h, 0, 0, columns, rows);
      const { data } = context.getImageData(0, 0, columns, rows);
      return Float32Array.from({ length: columns * rows }, (_, i) => (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3);
    };
  }

  // How many connections of the page are not closed.
  const open = () => peers.filter((peer) => peer.connectionState !== "closed").length;

  // What a viewer got over so many seconds, by the browser's own account.
  async function play(video, seconds) {
    const shown = [];
    const stop = frames(video, (now, about) => shown.push({ now, count: about.presentedFrames }));
    const first = await inbound();
    const offsets = [];
    for (let spent = 0; spent < seconds; spent += 0.5) {
      await sleep(0.5);
      const offset = await lips();
      if (offset !== null) offsets.push(offset);
    }
    stop();
    const last = await inbound();
    const between = (kind, name) => (last[kind]?.[name] ?? 0) - (first[kind]?.[name] ?? 0);
    const took = (last.video.timestamp - first.video.timestamp) / 1000;
    const gaps = shown.slice(1).map((each, i) => each.now - shown[i].now).sort((a, b) => a - b);
    return {
      seconds: took,
      size: [video.videoWidth, video.videoHeight],
      codec: [last.video.codec, last.audio.codec],
      received_fps: between("video", "framesReceived") / took,
      decoded_fps: between("video", "framesDecoded") / took,
      presented_fps: (shown.at(-1).count - shown[0].count) / ((shown.at(-1).now - shown[0].now) / 1000),
      gap_ms_p50: gaps[gaps.length >> 1],
      gap_ms_p99: gaps[Math.floor(0.99 * gaps.length)],
      dropped: between("video", "framesDropped"),
      freezes: between("video", "freezeCount"),
      freezes_seconds: between("video", "totalFreezesDuration"),
      keyframes: between("video", "keyFramesDecoded"),
      pli: between("video", "pliCount"),
      packets_lost: between("video", "packetsLost") + between("audio", "packetsLost"),
      kbit: (between("video", "bytesReceived") * 8) / took / 1000,
      jitter_ms: [1000 * last.video.jitter, 1000 * last.audio.jitter],
      buffer_ms: ["video", "audio"].map(
        (kind) => (1000 * between(kind, "jitterBufferDelay")) / between(kind, "jitterBufferEmittedCount")),
      concealed: between("audio", "concealedSamples") / between("audio", "totalSamplesReceived"),
      voice_energy: between("audio", "totalAudioEnergy"),
      lip_ms: median(offsets),
      lip_ms_range: [Math.min(...offsets), Math.max(...offsets)],
    };
  }

  // The picture's time less the voice's as the browser plays them now, in ms; null while it does not know.
  async function lips() {
    const { video: picture, audio: voice } = await inbound();
    if (!picture?.estimatedPlayoutTimestamp || !voice?.estimatedPlayoutTimestamp) return null;
    return picture.estimatedPlayoutTimestamp - voice.estimatedPlayoutTimestamp;
  }

  // How much a part of the picture changes in a quarter of a second, mean over so many seconds.
  async function motion(video, box, seconds) {
    const read = reader(video, box, 6, 5);
    const seen = [];
    const stop = frames(video, () => seen.push(read()));
    await sleep(seconds);
    stop();
    // each coarse cell against a quarter of a second before: lips open and close, while a head that only sways, grain
    // and the encoder's noise change little in it
    const step = Math.max(1, Math.round(seen.length / seconds / 4));
    const changes = seen.slice(step).map((now, n) => mean(now.map((value, i) => Math.abs(value - seen[n][i]))));
    return mean(changes);
  }

  // When the picture turned bright and when a click was heard, on one clock, in ms: offsets of flash to click, below 0
  // where the picture is early.
  async function flashes(video, stream, seconds) {
    const whole = reader(video, { left: 0.25, top: 0.25, width: 0.5, height: 0.5 }, 4, 4);
    const seen = [], heard = [];
    let bright = true;
    const stop = frames(video, (now, about) => {
      const level = mean(whole());
      if (level > 128 && !bright) seen.push(about.expectedDisplayTime);
      bright = level > 128;
    });
    const context = new AudioContext({ latencyHint: "interactive" });
    const worklet = `registerProcessor("clicks", class extends AudioWorkletProcessor {
      process([[samples]]) {
        const at = samples ? samples.findIndex((sample) => Math.abs(sample) > 0.1) : -1;
        if (at >= 0) this.port.postMessage(currentTime + at / sampleRate);
        return true;
      }
    })`;
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([worklet], { type: "text/javascript" })));
    const clicks = new AudioWorkletNode(context, "clicks");
    let last = -1;
    clicks.port.onmessage = ({ data }) => {
      const { contextTime, performanceTime } = context.getOutputTimestamp();
      // less what Web Audio takes of its own on the way to the loudspeaker
      if (data - last > 0.3) heard.push(performanceTime + 1000 * (data - contextTime - context.outputLatency));
      last = data;
    };
    context.createMediaStreamSource(stream).connect(clicks).connect(context.destination);
    await sleep(seconds);
    stop();
    await context.close();
    const offsets = seen.map((when) => {
      const nearest = heard.reduce((best, each) => (Math.abs(each - when) < Math.abs(best - when) ? each : best), 1e9);
      return when - nearest;
    }).filter((offset) => Math.abs(offset) < 400);
    return { seen: seen.length, heard: heard.length, lip_ms: median(offsets), offsets };
  }

  window.measure = { peers, inbound, open, play, lips, motion, flashes };
})();
