"""People put before other backgrounds, for the segmenter to learn from.

A prepared cache (prepare.py) says roughly where people are. Here they are cut out as at run time (renderer/matting.py),
once, and put before backgrounds of many kinds: those of other stills, filled in where their own people were; pictures
of rooms and places, if a folder of them is given; surfaces, shelves, leaves and stripes made up on the spot; other
people, out of focus. Colours, light, focus, noise, compression and framing vary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.errors import InputError
from engine.renderer.matting import closed_form, trimap
from engine.training.batches import Cache
from engine.training.prepare import SIZE

#: Radii of the averages that colours are parted by, in sides of the picture: first the wide one, then the narrow.
RADII = (45 / 512, 3 / 512)
#: Frames taken of a clip, whose people and walls do not change.
OF_A_CLIP = 2
#: How often a person comes from a still, where there are clips, too: stills show as many people as there are.
STILLS = 0.85
#: How often a picture is left as it is, and how often each kind of background is put behind a person.
AS_IT_IS = 0.12
KINDS = {"rooms": 0.38, "stills": 0.22, "made": 0.26, "people": 0.14}
#: What cannot be a portrait's person: less or more of a picture than this.
LEAST, MOST = 0.12, 0.92


@dataclass(frozen=True)
class People:
    """people (N, 256, 256, 4) uint8: colours and alpha; frames: which of the cache's they are (N,); stills: which of
    them are stills (N,) bool."""

    people: np.ndarray
    frames: np.ndarray
    stills: np.ndarray


def cut_out(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Picture (S, S, 3) uint8 and a rough mask (S, S) in 0..1 -> its person (S, S, 4) uint8."""
    known = trimap(mask)
    alpha = closed_form(picture / np.float32(255), known, mask)
    return np.dstack([own_colours(picture, alpha), 255 * alpha]).round().astype(np.uint8)


def own_colours(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Picture (S, S, 3) in 0..255 and alpha (S, S) of its person -> the person's own colours (S, S, 3) float32, where a
    pixel is the background's, too: from averages of what is surely either (Forte 2021, "Approximate fast foreground
    colour estimation")."""
    picture = picture.astype(np.float32)
    person = background = picture
    share = alpha[..., None]
    for radius in RADII:
        side = (2 * max(1, round(radius * len(picture))) + 1,) * 2
        weight = cv2.blur(alpha, side)[..., None]
        theirs = cv2.blur(person * share, side) / (weight + 1e-5)
        background = cv2.blur(background * (1 - share), side) / (1 - weight + 1e-5)
        off = picture - share * theirs - (1 - share) * background
        person = (theirs + share * off).clip(0, 255)
    return person


def people_of(cache: Cache, clips: list[dict], say: Callable[[str], None] = print) -> People:
    """The people of clips and stills. Those that fill a picture, or hardly show, are left out."""
    people, frames, stills = [], [], []
    for number, clip in enumerate(clips):
        for at in np.unique(np.linspace(0, clip["count"] - 1, OF_A_CLIP).round().astype(int)):
            frame = clip["start"] + at
            mask = cv2.resize(cache.mattes[frame] / np.float32(255), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
            if not LEAST < mask.mean() < MOST:
                continue
            people.append(cut_out(cache.frames[frame], mask))
            frames.append(frame)
            stills.append(clip["count"] == 1)
        if number % 100 == 99:
            say(f"cut out: {number + 1} of {len(clips)}")
    if not people:
        raise InputError("nobody in this cache can be cut out; prepare one whose pictures show people and backgrounds")
    return People(np.stack(people), np.array(frames), np.array(stills))


def read_rooms(folder: Path | None) -> list[np.ndarray]:
    """Pictures of backgrounds: (H, W, 3) uint8 RGB, their shorter sides 256 at least and 512 at most. Raises InputError
    where there are none."""
    if folder is None:
        return []
    rooms = []
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise InputError(f"{path}: no picture; take it out of the folder")
        scale = np.clip(min(picture.shape[:2]), SIZE, 2 * SIZE) / min(picture.shape[:2])
        if scale != 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        rooms.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    if not rooms:
        raise InputError(f"{folder}: no JPEG, PNG or WebP pictures there; give a folder of backgrounds without people")
    return rooms


@dataclass(frozen=True)
class Composer:
    """Draws compositions; the same seed and step give the same ones. fill: picture (S, S, 3) uint8 and its person's
    alpha (S, S) -> the background, filled in."""

    cache: Cache
    people: People
    rooms: list[np.ndarray]
    fill: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """(B, 3, 256, 256) in 0..1, and alpha (B, 1, 256, 256)."""
        rng = np.random.default_rng((seed, step))
        drawn = [self.draw(rng) for _ in range(size)]
        pictures, alphas = (torch.from_numpy(np.stack(x)) for x in zip(*drawn, strict=True))
        return pictures.permute(0, 3, 1, 2).float() / 255, alphas[:, None].float() / 255

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A picture (256, 256, 3) uint8 and its person's alpha (256, 256) uint8."""
        kind = rng.random() < STILLS
        several = np.flatnonzero(self.people.stills == kind)
        number = int(rng.choice(several if len(several) else len(self.people.frames)))
        person = self.people.people[number]
        if rng.random() < AS_IT_IS:
            own = np.dstack([self.cache.frames[self.people.frames[number]], person[..., 3]])
            placed = _placed(own, rng)
            return _filmed(placed[..., :3], rng), placed[..., 3]
        placed = _placed(person, rng)
        alpha = placed[..., 3:].astype(np.float32) / 255
        if rng.random() < 0.3:
            alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 1.2))[..., None]
        behind = self._background(placed, number, rng)
        behind = _lit(behind, rng, 0.35)
        front = _lit(placed[..., :3], rng, 0.15)
        shown = (front * alpha + behind * (1 - alpha)).round().astype(np.uint8)
        return _filmed(shown, rng), (255 * alpha[..., 0]).round().astype(np.uint8)

    def _background(self, placed: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        names = [name for name in KINDS if name != "rooms" or self.rooms]
        weights = np.array([KINDS[name] for name in names])
        kind = rng.choice(names, p=weights / weights.sum())
        if kind == "rooms":
            picture = _cropped(self.rooms[rng.integers(len(self.rooms))], rng)
        elif kind == "made":
            picture = made_up(rng, placed)
        else:
            other = int(rng.integers(len(self.people.frames)))
            frame = self.cache.frames[self.people.frames[other]]
            if kind == "stills" or other == number:
                frame = self.fill(frame, self.people.people[other][..., 3] / np.float32(255))
                picture = _cropped(frame, rng)
            else:
                picture = _aside(frame, rng)
        if rng.random() < 0.35:
            picture = _furnished(picture, placed, rng)
        if rng.random() < 0.55:
            picture = cv2.GaussianBlur(picture, (0, 0), np.exp(rng.uniform(-0.7, 2.0)))
        return picture


def _placed(person: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 4) moved, turned, scaled and perhaps mirrored; the shoulders go on below the picture they come
    from, and what is cut elsewhere goes on, too."""
    if rng.random() < 0.5:
        person = cv2.flip(person, 1)
    angle, zoom = rng.normal(0, 0.1), np.exp(rng.normal(0.05, 0.14))
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([SIZE / 2, SIZE / 2])
    shift = middle + rng.normal(0, 0.045 * SIZE, 2) - turn @ middle
    matrix = np.concatenate([turn, shift[:, None]], 1)
    return cv2.warpAffine(person, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _lit(picture: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """(H, W, 3) in another light: uint8."""
    gain = np.exp(rng.normal(0, strength) + rng.normal(0, 0.35 * strength, 3))
    power = np.exp(rng.normal(0, 0.6 * strength))
    table = 255 * ((np.arange(256)[:, None] / 255) ** power * gain).clip(0, 1)
    return cv2.LUT(np.ascontiguousarray(picture), table[None].round().astype(np.uint8))


def _filmed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8 as some camera and some codec leave it."""
    picture = _lit(picture, rng, 0.2)
    if rng.random() < 0.06:
        picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.25:
        side = int(rng.integers(80, SIZE))
        picture = cv2.resize(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    elif rng.random() < 0.2:
        soft = cv2.GaussianBlur(picture, (0, 0), 1)
        picture = cv2.addWeighted(picture, 1.8, soft, -0.8, 0)
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(1, 12), picture.shape).astype(np.float32)
        picture = (picture + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return picture


def _cropped(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square part of a picture (H, W, 3), as (256, 256, 3)."""
    least = min(picture.shape[:2])
    side = int(least * rng.uniform(0.45, 1))
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in picture.shape[:2])
    part = picture[top : top + side, left : left + side]
    if rng.random() < 0.5:
        part = cv2.flip(part, 1)
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA if side > SIZE else cv2.INTER_LINEAR)


def _aside(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another person's picture (256, 256, 3), the person smaller, at the side and mostly out of focus."""
    zoom = rng.uniform(0.35, 0.9)
    x = rng.choice([-1, 1]) * rng.uniform(0.32, 0.55) * SIZE
    matrix = np.array([[zoom, 0, SIZE / 2 * (1 - zoom) + x], [0, zoom, SIZE * rng.uniform(0, 1 - 0.8 * zoom)]])
    moved = cv2.warpAffine(frame, matrix, (SIZE, SIZE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101)
    return cv2.GaussianBlur(moved, (0, 0), np.exp(rng.uniform(-0.5, 1.3)))


def _furnished(picture: np.ndarray, placed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (256, 256, 3) with a few things in it that stand right behind the person (256, 256, 4): backs of
    chairs, frames, pillars, lamps, often in colours of the person's own."""
    picture = picture.copy()
    for _ in range(rng.integers(1, 4)):
        colour = _colour(placed, rng)
        x, y = rng.uniform(-0.1, 1.1) * SIZE, rng.uniform(0, 1.1) * SIZE
        wide, high = rng.uniform(0.06, 0.5) * SIZE, rng.uniform(0.1, 0.9) * SIZE
        layer = np.zeros((SIZE, SIZE), np.uint8)
        shape = rng.integers(3)
        if shape == 0:
            cv2.ellipse(layer, ((x, y), (wide, high), rng.uniform(-20, 20)), 255, -1, cv2.LINE_AA)
        else:
            box = cv2.boxPoints(((x, y), (wide, high), rng.uniform(-12, 12))).round().astype(np.int32)
            if shape == 1:
                cv2.fillConvexPoly(layer, box, 255, cv2.LINE_AA)
            else:
                cv2.polylines(layer, [box], True, 255, int(rng.integers(3, 16)), cv2.LINE_AA)
        share = layer[..., None] / np.float32(255) * rng.uniform(0.6, 1)
        surface = colour + _noise(rng, np.exp(rng.uniform(0, 3)))[..., None] * rng.uniform(0, 30)
        picture = (picture * (1 - share) + surface * share).clip(0, 255).astype(np.uint8)
    return picture


def _colour(placed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour (3,): one of the person's, or any."""
    if rng.random() < 0.5:
        y, x = np.nonzero(placed[..., 3] > 200)
        if len(y):
            at = rng.integers(len(y))
            return placed[y[at], x[at], :3].astype(np.float32)
    return rng.uniform(0, 255, 3).astype(np.float32)


def _noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """(256, 256) float32 of deviation one, smooth within so many pixels."""
    side = max(2, min(SIZE, round(2 * SIZE / scale)))
    noise = cv2.resize(rng.normal(0, 1, (side, side)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return noise / max(float(noise.std()), 1e-3)


def made_up(rng: np.random.Generator, placed: np.ndarray) -> np.ndarray:
    """A background (256, 256, 3) uint8 that nobody photographed, before which (256, 256, 4) stands."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE
    first, second = _colour(placed, rng), _colour(placed, rng)
    kind = rng.integers(6)
    if kind == 0:  # a wall in a light from the side
        angle = rng.uniform(0, 2 * np.pi)
        mixed = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) + 0.5)[..., None].clip(0, 1)
    elif kind == 1:  # clouds, plaster, marble, of several sizes
        layers = [_noise(rng, scale) * scale ** rng.uniform(0, 0.7) for scale in (2, 6, 18, 54)]
        mixed = (0.5 + 0.5 * np.tanh(sum(layers) / 6 * rng.uniform(0.3, 2)))[..., None]
    elif kind == 2:  # stripes, tiles, curtains
        angle, rate = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]), rng.uniform(3, 40)
        wave = np.sin(2 * np.pi * rate * (np.cos(angle) * x + np.sin(angle) * y) + _noise(rng, 60) * rng.uniform(0, 1))
        if rng.random() < 0.4:
            wave = np.maximum(wave, np.sin(2 * np.pi * rate * (np.cos(angle) * y - np.sin(angle) * x)))
        mixed = (0.5 + 0.5 * np.tanh(wave * rng.uniform(1, 6)))[..., None]
    elif kind == 3:
        return _shelves(rng)
    elif kind == 4:
        return _leaves(rng, first)
    else:  # lights out of focus
        picture = np.full((SIZE, SIZE, 3), first * 0.4, np.float32)
        for _ in range(rng.integers(8, 60)):
            spot = np.zeros((SIZE, SIZE), np.float32)
            cv2.circle(spot, tuple(rng.integers(0, SIZE, 2).tolist()), int(rng.integers(2, 26)), 1.0, -1, cv2.LINE_AA)
            picture += spot[..., None] * rng.uniform(0, 160, 3).astype(np.float32)
        return picture.clip(0, 255).astype(np.uint8)
    grain = _noise(rng, np.exp(rng.uniform(0, 2)))[..., None] * rng.uniform(0, 25)
    picture = first * mixed + second * (1 - mixed) + grain
    return picture.clip(0, 255).astype(np.uint8)


def _shelves(rng: np.random.Generator) -> np.ndarray:
    """Shelves of books and boxes: (256, 256, 3) uint8."""
    picture = np.full((SIZE, SIZE, 3), rng.uniform(20, 200, 3), np.uint8)
    top, board = -rng.integers(0, 40), rng.uniform(20, 230, 3).tolist()
    while top < SIZE:
        height, left = int(rng.integers(25, 90)), -int(rng.integers(0, 20))
        base = rng.uniform(0, 255, 3)
        while left < SIZE:
            wide = int(rng.integers(3, 24))
            if rng.random() < 0.85:
                low = top + int(height * rng.uniform(0, 0.35))
                colour = (base + rng.normal(0, 70, 3)).clip(0, 255).tolist()
                cv2.rectangle(picture, (left, low), (left + wide - 1, top + height), colour, -1)
            left += wide
        top += height
        cv2.rectangle(picture, (0, top), (SIZE, top + int(rng.integers(2, 9))), board, -1)
        top += 6
    return picture


def _leaves(rng: np.random.Generator, sky: np.ndarray) -> np.ndarray:
    """Leaves and twigs before a sky: (256, 256, 3) uint8."""
    picture = np.full((SIZE, SIZE, 3), sky, np.uint8)
    green = rng.uniform((20, 40, 0), (150, 190, 90))
    long = rng.uniform(3, 22)
    for _ in range(rng.integers(150, 500)):
        at, angle = rng.uniform(0, SIZE, 2), rng.uniform(0, 180)
        colour = (green * np.exp(rng.normal(0, 0.5)) + rng.normal(0, 12, 3)).clip(0, 255).tolist()
        size = (long * rng.uniform(0.4, 1.6), long * rng.uniform(0.1, 0.6))
        cv2.ellipse(picture, (tuple(at.tolist()), size, angle), colour, -1, cv2.LINE_AA)
    return picture
