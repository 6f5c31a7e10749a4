"""The three clips of this folder: python docs/clips.py, with the weights that ship.

Of the first three bundled portraits the first says the bundled voice, the second sentences read by flite, the third by
espeak-ng: six seconds each, with the seed 0. Needs Debian's flite and espeak-ng.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from engine.head import Head, Model
from engine.portrait import load_portrait
from engine.speech import SAMPLE_RATE, read_voice
from engine.training.phonemes import SENTENCES, VOICES, Voice, require_synthesisers, synthesise
from plugin.badge import Badge
from plugin.render import BUNDLED_VOICE, PROVENANCE, bundled_portraits

HERE = Path(__file__).parent
FPS, SIZE, SECONDS = 45, 512, 6
LIMIT = 1 << 20
# x264's quality, finest first; the first whose file is small enough is kept
QUALITIES = range(18, 40, 2)


def read_by(voice: Voice) -> np.ndarray:
    """As many of its sentences as begin within the clip."""
    blocks: list[np.ndarray] = []
    for text in SENTENCES[voice.language]:
        if sum(map(len, blocks)) < SECONDS * SAMPLE_RATE:
            blocks.append(synthesise(voice, text).samples)
    return np.concatenate(blocks)


def encode(path: Path, frames: list[np.ndarray], samples: np.ndarray, quality: int) -> int:
    """Write an MP4; return its size in bytes."""
    with av.open(str(path), "w", container_options={"movflags": "+faststart"}) as out:
        out.metadata.update({"comment": PROVENANCE, "description": PROVENANCE})
        video = out.add_stream("libx264", rate=FPS, options={"crf": str(quality), "preset": "slow"})
        video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.codec_context.bit_rate = 48_000
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        out.mux(audio.encode(sound))
        out.mux(audio.encode(None))
    return path.stat().st_size


def main() -> None:
    require_synthesisers()
    portraits = bundled_portraits()
    engines = dict.fromkeys(voice.engine for voice in VOICES)
    voices = [read_voice(BUNDLED_VOICE).mono16k()]
    voices += [read_by(next(voice for voice in VOICES if voice.engine == engine)) for engine in engines]
    model, badge = Model.load(), Badge(SIZE)
    for name, voice in zip(portraits, voices, strict=False):
        voice = voice[: SECONDS * SAMPLE_RATE]
        head = Head(model, load_portrait(portraits[name], SIZE), fps=FPS, size=SIZE)
        frames = [badge.put_on(frame.image).copy() for frame in head.push(voice) + head.finish()]
        path = HERE / f"clip-{name}.mp4"
        for quality in QUALITIES:
            size = encode(path, frames, voice, quality)
            if size < LIMIT:
                break
        print(f"{path.name}: {len(frames)} frames, {size / 1024:.0f} KiB, quality {quality}")


if __name__ == "__main__":
    main()
