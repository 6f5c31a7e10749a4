"""The viewer of `ifmdm bench live`, in a process of its own: watches over WHEP until standard input ends, then prints
what it saw as JSON. Its first line says that it watches."""

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from aiohttp import ClientSession
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import RtcpSrPacket

#: A square that is brighter, and a sample that is louder than this of full scale, begin a word.
BRIGHT, LOUD = 128, 0.04
#: Sound and square further apart than this do not belong together.
TOGETHER_SECONDS = 0.4
QUIET_SECONDS = 0.3
CLOCK = {"video": 90_000, "audio": 48_000}
#: See plugin/bench_live.py.
SQUARE = 8


@dataclass
class Sender:
    """The sender's clock, as its reports tell it (RFC 3550 section 6.4.1), for one kind of media."""

    receiver: RTCRtpReceiver
    report: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        # aiortc keeps no sender reports for its user, so they are read on their way
        handle = self.receiver._handle_rtcp_packet

        async def note(packet: object) -> None:
            if isinstance(packet, RtcpSrPacket):
                self.report = packet.sender_info.ntp_timestamp, packet.sender_info.rtp_timestamp
            await handle(packet)

        self.receiver._handle_rtcp_packet = note

    def seconds(self, pts: int) -> float | None:
        """When a decoded frame's `pts` was, in the sender's seconds."""
        if self.report is None:
            return None
        ntp, rtp = self.report
        stamp = (pts + self.receiver._RTCRtpReceiver__timestamp_mapper._origin) % 2**32
        return ntp / 2**32 + ((stamp - rtp + 2**31) % 2**32 - 2**31) / CLOCK[self.receiver.track.kind]


@dataclass
class Seen:
    """came: when pictures came; squares, sounds: pts at which words begin."""

    came: list[float] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    sounds: list[int] = field(default_factory=list)

    async def watch(self, track: MediaStreamTrack) -> None:
        dark = False
        while True:
            frame = await track.recv()
            self.came.append(time.monotonic())
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
            side = frame.width // SQUARE
            bright = luma[side // 4 : side * 3 // 4, side // 4 : side * 3 // 4].mean() > BRIGHT
            if bright and dark:
                self.squares.append(frame.pts)
            dark = not bright

    async def listen(self, track: MediaStreamTrack) -> None:
        quiet_since: int | None = None
        while True:
            frame = await track.recv()
            samples = np.abs(frame.to_ndarray().reshape(-1, len(frame.layout.channels))[:, 0].astype(np.int32))
            for at in np.flatnonzero(samples > LOUD * 32768):
                if quiet_since is not None and frame.pts + at - quiet_since > QUIET_SECONDS * CLOCK["audio"]:
                    self.sounds.append(frame.pts + int(at))
                quiet_since = frame.pts + int(at)
            if quiet_since is None:
                quiet_since = frame.pts


def offsets(pictures: list[float], sounds: list[float]) -> list[float]:
    """Seconds by which each word's picture comes after its sound."""
    found = []
    for picture in pictures:
        nearest = min(sounds, key=lambda sound: abs(sound - picture), default=None)
        if nearest is not None and abs(picture - nearest) < TOGETHER_SECONDS:
            found.append(picture - nearest)
    return found


def told(seen: Seen, senders: dict[str, Sender], asked: float) -> dict:
    gaps = np.diff(seen.came)
    spent = seen.came[-1] - seen.came[0] if len(seen.came) > 1 else 0.0
    shown = [at for pts in seen.squares if (at := senders["video"].seconds(pts)) is not None]
    heard = [at for pts in seen.sounds if (at := senders["audio"].seconds(pts)) is not None]
    apart = 1000 * np.array(offsets(shown, heard))
    lips = {"count": len(apart)}
    if len(apart):
        lips |= {"median": round(float(np.median(apart)), 1), "p95": round(float(np.percentile(np.abs(apart), 95)), 1)}
    return {
        "frames": len(seen.came),
        "per_second": round((len(seen.came) - 1) / spent, 2) if spent else 0.0,
        "longest_gap_ms": round(float(gaps.max()) * 1000) if len(gaps) else 0,
        "gaps_over_100_ms": int((gaps > 0.1).sum()),
        "first_frame_seconds": round(seen.came[0] - asked, 3) if seen.came else 0.0,
        "lip_offset_ms": lips,
    }


async def view(url: str) -> dict:
    peer, seen, tasks, asked = RTCPeerConnection(RTCConfiguration(iceServers=[])), Seen(), [], time.monotonic()
    senders = {kind: Sender(peer.addTransceiver(kind, "recvonly").receiver) for kind in ("video", "audio")}

    @peer.on("track")
    def start(track: MediaStreamTrack) -> None:
        tasks.append(asyncio.ensure_future((seen.watch if track.kind == "video" else seen.listen)(track)))

    await peer.setLocalDescription()
    async with ClientSession() as client:
        kind = {"Content-Type": "application/sdp"}
        async with client.post(url, data=peer.localDescription.sdp.encode(), headers=kind) as response:
            answer = await response.text()
            if response.status != 201:
                raise SystemExit(f"{url}: {response.status}: {answer.strip()}")
    await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    print("watching", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    result = told(seen, senders, asked)
    await peer.close()
    with contextlib.suppress(MediaStreamError):
        await asyncio.gather(*tasks)
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(view(sys.argv[1]))))
