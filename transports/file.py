"""Frames and voice into an MP4 file."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.reformatter import VideoReformatter as Reformatter

from transports.media import TransportError

# The highest sample rate that is kept. AAC takes 96 kHz too, but no voice needs it and some players refuse.
MAX_AUDIO_RATE = 48_000
# Per channel: a second, and at most per sample. On speech 43 dB or more over the coding noise from 16 kHz up.
AUDIO_BITS = (96_000, 5)
# FFmpeg's default coder, "twoloop", clicks on steady tones: 24 dB over the noise where this one gives 60.
AUDIO_OPTIONS = {"aac_coder": "fast"}
#: FFmpeg's encoders for the pictures, the best first. All wheels of PyAV have x264, which is GPL; an FFmpeg without GPL
#: code has it not, and MPEG-4 Part 2 is in each.
VIDEO_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# Of those that know no quality, bits a pixel: MPEG-4 Part 2 at what x264 makes of a talking head, several times over.
BITS_PER_PIXEL = 0.4
# Indistinguishable from the source at arm's length, and x264 keeps up with 45 fps on half a core.
QUALITY = {"crf": "18", "preset": "veryfast"}
ENCODER_THREADS = 2
# faststart: at the end the index goes to the front, so that a browser plays while it loads. For that the whole file is
# written anew, and until then nothing of it can be played.
AT_ONCE = {"movflags": "+faststart"}
# A second at a time, each playable by itself, with an index of them all behind them at the end. delay_moov: with the
# first second comes what the encoders hold back, without which picture and sound would not begin at 0.
IN_PIECES = {"movflags": "+hybrid_fragmented+delay_moov", "frag_duration": "1000000", "flush_packets": "1"}
# Pictures are then encoded in the order in which they are shown: FFmpeg counts a file's length by its last piece, and
# would leave out a last picture that came in the piece before.
IN_ORDER = {"bf": "0"}

#: Most systems take names of 255 bytes.
STEM_BYTES = 200

# Left to itself, swscale takes the colour of every second pixel only, and rounds colours down.
_CAREFUL = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class OutputError(TransportError):
    """The file cannot be written. The message is one line that says which file, why, and what to do."""


def check_output(path: str | Path) -> Path:
    """Return where an MP4 file given as `path` will be, links followed, or say why it cannot be there.

    An existing file will be replaced. Raises OutputError for a name that does not end in .mp4, a folder that
    is missing or cannot be written to, and anything there that is not a plain file.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"{path}: the output is an MP4 file: give a name that ends in .mp4")
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: something that is not a plain file is in the way: give another name")
        if not target.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {target.parent}: make it, or give another name")
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise OutputError(f"{path}: no file can be written there ({error}): give another name") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {target.parent} cannot be written to: give another name")
    return target


def short_stem(target: Path) -> str:
    """What of a file's name is in that of the hidden file beside it, which must not become longer than names may be."""
    stem = target.stem[:64]
    while len(os.fsencode(stem)) > STEM_BYTES:
        stem = stem[:-1]
    return stem


def has_encoder(name: str) -> bool:
    """Whether PyAV's FFmpeg has the encoder of that name."""
    try:
        av.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def video_encoder() -> str:
    """The encoder that files are made with."""
    return next(filter(has_encoder, VIDEO_ENCODERS))


def encoder_note() -> str:
    """One line on what is different without x264; "" with it."""
    chosen = video_encoder()
    if chosen == VIDEO_ENCODERS[0]:
        return ""
    made = "MPEG-4 Part 2, which browsers do not play" if chosen == "mpeg4" else "H.264 of a fixed bitrate"
    return f"PyAV's FFmpeg has no x264: the pictures of an MP4 file are {made} (docs/licences.md)"


def supported_audio_rate(rate: int) -> int:
    """The rate at which AAC keeps a voice of `rate` Hz: that or the next higher there is, up to 48 kHz."""
    rates = sorted(r for r in av.Codec("aac", "w").audio_rates or () if r <= MAX_AUDIO_RATE)
    return next((r for r in rates if r >= rate), MAX_AUDIO_RATE)


class Mp4Writer:
    """An MP4 file (H.264, see VIDEO_ENCODERS, and AAC) that appears only when it is whole.

    Frame i is shown at i / fps and the first sample of the voice is heard at 0. Until `close` everything goes
    to a hidden file beside the target, which then takes the target's name; a writer that is left by an
    exception removes it and leaves whatever was there before. The tracks may be written in any order, but
    what one is ahead of the other is held in memory.

    In pieces, the hidden file can be played to within a second or two of its end whatever becomes of the process, it
    stays after an exception, and `close` takes no longer for a long file than for a short one.

    Not for several threads at once.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        fps: int,
        audio_rate: int,
        audio_channels: int = 1,
        tags: Mapping[str, str] | None = None,
        in_pieces: bool = False,
    ) -> None:
        """Start a file.

        width, height: pixels, even. fps: whole frames a second. audio_rate: Hz of what `write_audio` will be
        given; kept up to 48 kHz. audio_channels: 1 or 2. tags: what the file says of itself; MP4 keeps
        `title`, `artist`, `date`, `comment`, `description`, `copyright` and a few more, and drops other keys.
        in_pieces: for what goes on for long, and may be cut off.

        Raises OutputError (a ValueError) for a path that cannot be written and for values that do not fit.
        """
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise OutputError(f"{path}: width and height must be even, not {width}x{height}")
        if fps < 1 or audio_rate < 1:
            raise OutputError(f"{path}: fps and audio rate must be 1 or more, not {fps} and {audio_rate}")
        if audio_channels not in (1, 2):
            raise OutputError(f"{path}: the voice must have 1 or 2 channels, not {audio_channels}")
        self._path = Path(path)
        self._target = check_output(path)
        self._part = self._target.with_name(f".{short_stem(self._target)}-{secrets.token_hex(4)}.part")
        self._shape = (height, width, 3)
        self._fps = fps
        self._audio_rate = audio_rate
        self._layout = "mono" if audio_channels == 1 else "stereo"
        self._channels = audio_channels
        self._in_pieces = in_pieces
        self._frames = 0
        self._samples = 0
        self._open = True
        with self._explained(), contextlib.ExitStack() as undo:
            options = IN_PIECES if in_pieces else AT_ONCE
            self._container = av.open(str(self._part), "w", format="mp4", container_options=options)
            undo.callback(self.abort)
            self._container.metadata.update(tags or {})
            self._add_video(width, height, fps, QUALITY | IN_ORDER if in_pieces else QUALITY)
            self._add_audio(audio_rate, audio_channels)
            undo.pop_all()

    def _add_video(self, width: int, height: int, fps: int, options: Mapping[str, str]) -> None:
        encoder = video_encoder()
        best = encoder == VIDEO_ENCODERS[0]
        self._video = self._container.add_stream(encoder, rate=fps, options=dict(options) if best else {})
        context = self._video.codec_context
        if not best:
            context.bit_rate = round(width * height * fps * BITS_PER_PIXEL)
        context.width, context.height = width, height
        context.pix_fmt = "yuv420p"
        context.time_base = Fraction(1, fps)
        context.thread_count = ENCODER_THREADS
        # Said in the file, or a player guesses by the size, and a face turns greenish.
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._reformatter = Reformatter()

    def _add_audio(self, rate: int, channels: int) -> None:
        kept = supported_audio_rate(rate)
        self._audio = self._container.add_stream("aac", rate=kept, layout=self._layout, options=AUDIO_OPTIONS)
        a_second, a_sample = AUDIO_BITS
        self._audio.codec_context.bit_rate = min(a_second, a_sample * kept) * channels
        self._audio.codec_context.time_base = Fraction(1, kept)
        self._resampler = None
        if kept != rate:
            self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=kept)

    @property
    def part(self) -> Path:
        """The hidden file."""
        return self._part

    @property
    def frames(self) -> int:
        """How many frames were written."""
        return self._frames

    def write_video(self, image: np.ndarray) -> None:
        """Add the next frame: uint8 RGB (height, width, 3). The array is free again on return."""
        self._check_open()
        if image.shape != self._shape or image.dtype != np.uint8:
            raise OutputError(
                f"{self._path}: a frame must be uint8 {self._shape}, not {image.dtype} {image.shape}"
            )
        with self._explained():
            frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
            frame = self._reformatter.reformat(
                frame,
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_primaries=ColorPrimaries.BT709,
                dst_color_trc=ColorTrc.BT709,
                interpolation=_CAREFUL,
                threads=1,
            )
            frame.pts = self._frames
            frame.time_base = Fraction(1, self._fps)
            self._container.mux(self._video.encode(frame))
        self._frames += 1

    def write_audio(self, samples: np.ndarray) -> None:
        """Add the next samples: float, -1..1, (n,) for mono or (n, channels). Any n, none too."""
        self._check_open()
        if len(samples) == 0:
            return
        samples = samples.reshape(len(samples), -1)
        if samples.shape[1] != self._channels:
            raise OutputError(
                f"{self._path}: the voice must have {self._channels} channels, not {samples.shape[1]}"
            )
        with self._explained():
            planes = np.ascontiguousarray(samples.T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
            frame.sample_rate = self._audio_rate
            frame.time_base = Fraction(1, self._audio_rate)
            frame.pts = self._samples
            self._encode_audio(frame)
        self._samples += samples.shape[0]

    def _encode_audio(self, frame: av.AudioFrame | None) -> None:
        frames = [frame] if self._resampler is None else self._resampler.resample(frame)
        for ready in frames:
            self._container.mux(self._audio.encode(ready))

    def close(self) -> None:
        """Finish the file and give it its name. Calling it again does nothing.

        Raises OutputError if the file cannot be finished (then there is none).
        """
        if not self._open:
            return
        try:
            with self._explained():
                if self._frames == 0:
                    raise OutputError(f"{self._path}: no frame was written, so there is no video to keep")
                self._container.mux(self._video.encode(None))
                if self._samples:
                    if self._resampler is not None:
                        self._encode_audio(None)
                    self._container.mux(self._audio.encode(None))
                self._container.close()
                os.replace(self._part, self._target)
            self._open = False
        finally:
            self.abort()

    def abort(self) -> None:
        """Give the file up: nothing of it stays, but for pieces with pictures in them. Does nothing after `close`."""
        if not self._open:
            return
        self._open = False
        # The encoder or the disk may be what failed; what counts here is that nothing is left behind.
        with contextlib.suppress(Exception):
            self._container.close()
        if not (self._in_pieces and self._frames):
            with contextlib.suppress(OSError):
                self._part.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _check_open(self) -> None:
        if not self._open:
            raise OutputError(f"{self._path}: the file is already finished")

    @contextlib.contextmanager
    def _explained(self):
        """Turn what PyAV and the system raise into one line."""
        try:
            yield
        except OutputError:
            raise
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{self._path}: the file cannot be written ({reason})") from error
