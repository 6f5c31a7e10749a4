"""Pictures to VP8 or H.264, voice to Opus. Encoders of our own: those inside aiortc end at 1.5 Mbit/s and 30 fps."""

from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.frame import PictureType

from transports.file import has_encoder
from transports.media import TransportError

VIDEO_CLOCK, VOICE_CLOCK = 90_000, 48_000
VIDEO_BASE, VOICE_BASE = Fraction(1, VIDEO_CLOCK), Fraction(1, VOICE_CLOCK)
#: Rates that Opus takes without resampling (RFC 6716 section 2.1.3).
VOICE_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
VOICE_BITRATE = 40_000
VOICE_PACKET_SECONDS = 0.02
#: Missing voice up to here becomes silence; after more the encoder begins anew.
GAP_SECONDS = 1.0


#: FFmpeg's encoder for each codec. PyAV's wheels have them all; an FFmpeg without GPL code has no libx264.
ENCODERS = {"vp8": "libvpx", "h264": "libx264"}


def can_encode(codec: str) -> bool:
    return has_encoder(ENCODERS[codec])


@dataclass(frozen=True, eq=False)
class Picture:
    """One encoded frame. packet: its bytes, pts in 1/90000 s; keyframe: whether decoding may begin here."""

    packet: av.Packet
    keyframe: bool
    size: int


def to_i420(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(height, width, 3) uint8 RGB -> (height * 3 / 2, width) uint8, BT.601 in limited range. out: to write into."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420, dst=out)


def video_time(index: int, fps: int) -> int:
    """RTP time of frame `index`: at 45 fps 2000 ticks a frame, at other rates as near as there are ticks."""
    return index * VIDEO_CLOCK // fps


class VideoEncoder:
    """One stream for all who watch in this codec. It decides no keyframes: whoever needs one asks."""

    def __init__(self, codec: str, width: int, height: int, fps: int, bitrate: int) -> None:
        """codec: "vp8" or "h264"; bitrate: bits a second. Raises TransportError if there is no encoder for it."""
        self._fps = fps
        if not can_encode(codec):
            raise TransportError(f"PyAV's FFmpeg has no {ENCODERS[codec]}, which {codec} needs: choose another codec")
        context = av.CodecContext.create(ENCODERS[codec], "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.bit_rate = bitrate
        context.framerate = Fraction(fps)
        context.gop_size = 60 * fps
        context.thread_count = 1  # two threads cost more than they save at this size
        if codec == "vp8":
            context.time_base = VIDEO_BASE
            context.qmin, context.qmax = 2, 56
            # noise-sensitivity stays off: what the head draws has no noise, and it cost 2.7 dB
            context.options = {
                "deadline": "realtime",
                "cpu-used": "-6",
                "lag-in-frames": "0",
                "minrate": str(bitrate),
                "maxrate": str(bitrate),
                "bufsize": str(bitrate // 2),
                "undershoot-pct": "100",
                "overshoot-pct": "15",
                "static-thresh": "1",
                "max-intra-rate": "600",  # per cent of a frame's share: a keyframe of 27 kB at 2 Mbit/s is a burst
            }
        else:
            context.time_base = Fraction(1, fps)  # x264 takes it for the rate
            context.profile = "Baseline"  # without what is not in the constrained one
            context.options = {
                "preset": "superfast",  # half a millisecond more than ultrafast for 4 dB
                "tune": "zerolatency",
                # 3.1, as offered, as long as it can be: 108000 blocks of 256 pixels a second, 3600 of them a picture
                "level": "31" if width * height * max(fps, 30) <= 108_000 * 256 else "40",
                "forced-idr": "1",
                "sc_threshold": "0",
                "maxrate": str(bitrate),
                "bufsize": str(bitrate // 5),
            }
        self._context, self._codec, self._count = context, codec, 0

    def encode(self, i420: np.ndarray, index: int, keyframe: bool) -> list[Picture]:
        """One picture, as to_i420 gives it; indices grow. One Picture comes out, rarely none. Raises av.FFmpegError."""
        frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
        frame.time_base = self._context.time_base
        # libvpx reckons with the rate of the frames that follow each other, and where some are missing here and there
        # it took twice the bitrate; so it is told of none that is missing
        frame.pts = video_time(self._count, self._fps) if self._codec == "vp8" else index
        self._count += 1
        if keyframe:
            frame.pict_type = PictureType.I
        pictures = []
        for packet in self._context.encode(frame):
            packet.pts, packet.time_base = video_time(index, self._fps), VIDEO_BASE
            pictures.append(Picture(packet, packet.is_keyframe, packet.size))
        return pictures


class VoiceEncoder:
    """Opus in packets of 20 ms, with the voice of the packet before in each, so that a lost one can be mended."""

    def __init__(self, rate: int) -> None:
        """rate: one of VOICE_RATES."""
        self._rate = rate
        self._count = round(rate * VOICE_PACKET_SECONDS)
        self._held = np.zeros(0, np.int16)
        self._next: int | None = None
        self._context: av.AudioCodecContext | None = None

    def _begin(self, at: int) -> None:
        self._context = av.CodecContext.create("libopus", "w")
        self._context.sample_rate, self._context.layout, self._context.format = self._rate, "mono", "s16"
        self._context.time_base = Fraction(1, self._rate)
        self._context.bit_rate = VOICE_BITRATE
        self._context.options = {"application": "voip", "fec": "1", "packet_loss": "5"}
        self._held = np.zeros(0, np.int16)
        self._next = at

    def hush(self) -> None:
        """What was given and is in no packet yet becomes silence."""
        self._held[:] = 0

    def encode(self, at: int, samples: np.ndarray) -> list[av.Packet]:
        """samples: (n,) float32 in [-1, 1], the first at position `at`. Returns packets with pts in 1/48000 s."""
        gap = 0 if self._next is None else at - self._next - len(self._held)
        if self._next is None or gap < 0 or gap > GAP_SECONDS * self._rate:
            self._begin(at)
            gap = 0
        whole = np.clip(np.nan_to_num(samples), -1, 1) * 32767
        self._held = np.concatenate([self._held, np.zeros(gap, np.int16), whole.astype(np.int16)])
        packets = []
        while len(self._held) >= self._count:
            frame = av.AudioFrame.from_ndarray(self._held[None, : self._count].copy(), "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._next
            self._held, self._next = self._held[self._count :], self._next + self._count
            for packet in self._context.encode(frame):
                # what comes out of a decoder begins earlier by the look-ahead, which this pts has in it
                packet.pts, packet.time_base = packet.pts * VOICE_CLOCK // self._rate, VOICE_BASE
                packets.append(packet)
        return packets
