"""The contact sheets of this folder: python docs/sheets.py PORTRAITS, with the weights that ship.

bundled.jpg: the bundled portraits saying the bundled voice. unseen.jpg: the same of the first twelve held-out stills
(engine/training/held_out.py), whose pictures are in the folder PORTRAITS; unseen-clean.jpg: those with the weights
`clean`. The portrait first, then nine moments, evenly spread.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from engine.head import Head, Model
from engine.model import find_weights
from engine.portrait import load_portrait
from engine.speech import SAMPLE_RATE, read_voice
from engine.training.stills import find_stills
from plugin.render import BUNDLED_VOICE, bundled_portraits

HERE = Path(__file__).parent
FPS, SIZE, MOMENTS = 25, 512, 9
#: Seconds: the first moment and the last one, in the bundled voice.
SPAN = (0.9, 7.33)


def sheet(model: Model, portraits: list[Path], side: int) -> np.ndarray:
    """A row of `side` pixels for each portrait."""
    voice = read_voice(BUNDLED_VOICE).mono16k()[: round(SPAN[1] * SAMPLE_RATE) + SAMPLE_RATE]
    rows = []
    for path in portraits:
        portrait = load_portrait(path, SIZE)
        head = Head(model, portrait, fps=FPS, size=SIZE)
        frames = [frame.image.copy() for frame in head.push(voice) + head.finish()]
        moments = [frames[i] for i in np.linspace(SPAN[0] * FPS, SPAN[1] * FPS, MOMENTS).astype(int)]
        pictures = [portrait.pixels, *moments]
        rows.append(np.hstack([cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures]))
    return np.vstack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("portraits", type=Path, help="folder of the held-out stills")
    args = parser.parse_args()
    unseen = find_stills(args.portraits, 12)
    for name, weights, paths, side, quality in (
        ("bundled.jpg", "research", list(bundled_portraits().values()), 160, 88),
        ("unseen.jpg", "research", unseen, 144, 85),
        ("unseen-clean.jpg", "clean", unseen, 144, 80),
    ):
        picture = sheet(Model.load(find_weights(weights)), paths, side)
        cv2.imwrite(str(HERE / name), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        print(f"{name}: {len(paths)} portraits, {(HERE / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
