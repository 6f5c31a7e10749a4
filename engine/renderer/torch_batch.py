"""Stage 1 at run time in torch, for GPUs: all heads of a process in one batch a tick.

Heads that want a frame at the same time get it from the same launches, whatever their portraits: what a portrait is
made of is kept on the device for as long as somebody shows it, and a frame takes 400 bytes there and the finished
picture back. The arithmetic is that of engine/renderer/cpu.py, in float32 throughout: the pictures differ by less than
0.25 of 255 levels in the mean and by at most 3 at 99.9 % of all values (tests/test_torch_batch.py).

How it is laid out on the device, for all heads of one size:

- *Fields*, a table for each of the six kinds, a row for each coefficient of each head. Mixing those of a frame is
  `embedding_bag`: the rows of its head are summed, weighted by its coefficients, where they lie. Nothing is gathered
  first, which would move every field twice.
- *Portraits*, FINER times as fine as they are shown, tiled into one picture (the atlas), so that one look-up serves
  frames of many portraits. It is as many tiles wide as high: coordinates are fractions of the whole in float32, and
  lose 0.001 of a pixel at 64 portraits, where a single column would lose 0.01.
- *Patches* lie on the canvas where their portrait has them: each row of patch fields has its pixels' places there.

Heads take a free place; the whole is built anew, larger, when there is none, and forgotten with the last of them.

Nothing waits for the device but the end of a batch, when its pictures have come. They come in one copy to pinned
memory, which torch keeps and uses again; each caller takes its own picture out of it in its own thread. Half precision
was left out: displacements need more than its 11 bits (0.03 of a canvas pixel at 32, 0.2 of a pixel of the fine
portrait), and fields are a tenth of what is read and written (docs/performance.md, "On a GPU").
"""

import math
import threading
import weakref
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.gather import Gatherer, together
from engine.renderer import lids, lips
from engine.renderer.cpu import CANVAS, FINER, GAUGES, WIDEST, FieldCounts, PreparedPortrait, away, fine_layers, margin
from engine.renderer.inside import INSIDE, apart, uncovered
from engine.renderer.matte import Layers

#: Frames in one batch, at most.
MOST = 64
#: Patches of portraits differ in size; rows of their fields are as long as the longest needs, in steps of so many.
PATCH_STEP = 1024
#: What is drawn in the mouth's and the eyes' patches, see PreparedPortrait: so many planes.
DRAWN = (2, 6)
#: The kinds of fields, in the order of their coefficients, and the planes of each: x and y, or colour and opacity.
HEAD, FACE, MOUTH_FLOW, MOUTH_TEXTURE, EYES_FLOW, EYES_TEXTURE = range(6)
PLANES = (2, 2, 2, 4, 2, 4)


def try_device(device: str) -> str:
    """Compute something there; what the device is called. Raises RuntimeError."""
    if device == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None:
            raise RuntimeError("this PyTorch is built without CUDA; https://pytorch.org/get-started has one with it")
        raise RuntimeError("it finds no GPU; the driver may be too old for it, or CUDA_VISIBLE_DEVICES hides it")
    torch.ones(1, device=device).add_(1).item()
    return torch.cuda.get_device_name() if device == "cuda" else f"PyTorch {torch.__version__}"


@dataclass(eq=False)
class _Seat:
    """A head's place. portrait: what is to be brought to the device, until it is there; layers: the same, the
    person FINER times as fine; place: among the heads of its size, once it is there."""

    size: int
    counts: FieldCounts
    portrait: PreparedPortrait | None
    layers: Layers | None
    place: int = -1

    @property
    def kind(self) -> tuple[int, FieldCounts]:
        """Heads of one kind are rendered in one batch."""
        return self.size, self.counts


@dataclass(frozen=True, eq=False)
class _Join:
    seat: _Seat


@dataclass(frozen=True, eq=False)
class _Leave:
    seat: _Seat


@dataclass(frozen=True, eq=False)
class _Show:
    """weights (C,) float32: the coefficients' differences to the portrait's own, see cpu.away."""

    seat: _Seat
    weights: np.ndarray


class TorchRenderer:
    """Renders frames of one portrait at one size, together with the others of its `TorchRenderers`."""

    def __init__(self, portrait: PreparedPortrait, size: int, gatherer: Gatherer):
        self.portrait, self.size = portrait, size
        self._gatherer = gatherer
        self._seat = _Seat(size, portrait.counts, portrait, fine_layers(portrait, size))
        gatherer.call(_Join(self._seat))
        weakref.finalize(self, gatherer.post, _Leave(self._seat)).atexit = False

    def render(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (C,) of the motion to show -> frame (size, size, 3) uint8 RGB, the caller's to keep. Waits
        for the batch it is in. Raises ValueError for a shape that does not fit."""
        own = self.portrait.coefficients
        if coefficients.shape != own.shape:
            raise ValueError(f"coefficients {coefficients.shape}, not {own.shape}")
        # a copy, so that whoever keeps a frame does not keep its whole batch
        return self._gatherer.call(_Show(self._seat, away(coefficients, own, self.portrait.blinking))).copy()


class TorchRenderers:
    """Makes renderers that share a device. For any thread; nothing is started before the first."""

    def __init__(self, device: str, most: int = MOST):
        """device: "cuda" or "cpu". most: frames in a batch."""
        self._device, self._most = device, most
        self._lock = threading.Lock()
        self._gatherer: Gatherer | None = None

    def make(self, portrait: PreparedPortrait, size: int) -> TorchRenderer:
        """Raises RuntimeError if the device has no memory left."""
        with self._lock:
            if self._gatherer is None:
                self._gatherer = Gatherer(_Stage(self._device, self._most).work, "renderer", self._most)
        return TorchRenderer(portrait, size, self._gatherer)

    def close(self) -> None:
        if self._gatherer is not None:
            self._gatherer.close()


class _Stage:
    """All that is on the device, by kind of heads. In the gatherer's thread alone, and on one stream."""

    def __init__(self, device: str, most: int):
        self._device, self._most = torch.device(device), most
        self._stream = torch.cuda.Stream() if device == "cuda" else None
        self._companies: dict[tuple[int, FieldCounts], _Company] = {}

    @torch.inference_mode()
    def work(self, jobs: list[_Join | _Leave | _Show]) -> list[np.ndarray | Exception | None]:
        """Frames, in pinned memory; nothing for a head that joins or leaves."""
        with torch.cuda.stream(self._stream):  # none on the processor, which does nothing
            outcomes: list[np.ndarray | Exception | None] = [None] * len(jobs)
            shown: dict[tuple[int, FieldCounts], list[int]] = {}
            for number, job in enumerate(jobs):
                if isinstance(job, _Show):
                    shown.setdefault(job.seat.kind, []).append(number)
                    continue
                try:
                    (self._join if isinstance(job, _Join) else self._leave)(job.seat)
                except Exception as error:
                    outcomes[number] = error
            for kind, numbers in shown.items():
                found = together(self._companies[kind].show, [jobs[number] for number in numbers])
                for number, outcome in zip(numbers, found, strict=True):
                    outcomes[number] = outcome
            return outcomes

    def _join(self, seat: _Seat) -> None:
        company = self._companies.get(seat.kind) or _Company(self._device, seat.size, seat.counts, self._most)
        company.join(seat)
        self._companies[seat.kind] = company

    def _leave(self, seat: _Seat) -> None:
        company = self._companies[seat.kind]
        company.leave(seat)
        if not company.places:
            del self._companies[seat.kind]


@dataclass(eq=False)
class _Store:
    """What is kept of `side` * `side` portraits; see the module. tables: fields, (places * K, planes * n) each, flows
    in half sides of the canvas; spots: where on the canvas the pixels of the mouth's and the eyes' patches lie,
    (places, n) each; drawn: what is drawn there, (places, planes, n) each; atlas (1, 4, side * tile, side * tile): the
    persons' colours and how much of the background shows through, in 0..255; backs (places, 3, size, size) uint8: the
    backgrounds; insides (places, 4, n, n) and boxes (places, 4): what mouths hold, see inside.Inside; corners
    (2, places): of the tiles, and axis (size,): of a frame's pixels from there, both in half sides of the
    atlas."""

    side: int
    reach: tuple[int, int]
    tables: list[Tensor]
    spots: tuple[Tensor, Tensor]
    drawn: tuple[Tensor, Tensor]
    atlas: Tensor
    backs: Tensor
    insides: Tensor
    boxes: Tensor
    corners: Tensor
    axis: Tensor

    @classmethod
    def make(cls, device: torch.device, side: int, reach: tuple[int, int], counts: tuple[int, ...], size: int):
        """reach: pixels of the mouth's and the eyes' patches, at most."""
        lengths = (32 * 32, 128 * 128, reach[0], reach[0], reach[1], reach[1])
        tables = [
            torch.zeros(side * side * count, planes * length, device=device)
            for count, planes, length in zip(counts, PLANES, lengths, strict=True)
        ]
        # what a patch does not need adds nothing, to different pixels each
        spots = tuple(torch.arange(n, device=device).remainder_(CANVAS**2).repeat(side * side, 1) for n in reach)
        drawn = tuple(torch.zeros(side * side, c, n, device=device) for c, n in zip(DRAWN, reach, strict=True))
        tile = FINER * (size + 2 * margin(size))
        atlas = torch.zeros(1, 4, side * tile, side * tile, device=device)
        backs = torch.zeros(side * side, 3, size, size, dtype=torch.uint8, device=device)
        insides = torch.zeros(side * side, 4, INSIDE, INSIDE, device=device)
        boxes = torch.ones(side * side, 4, device=device)
        places = torch.arange(side * side, device=device)
        corners = torch.stack([places % side, places // side]) * (2 / side) - 1
        axis = (2 * ((torch.arange(size, device=device) + margin(size)) * FINER + FINER // 2) + 1) / (side * tile)
        return cls(side, reach, tables, spots, drawn, atlas, backs, insides, boxes, corners, axis)

    @property
    def pixel(self) -> float:
        """One pixel of the atlas, in half sides of it."""
        return 2 / self.atlas.shape[-1]

    def tile(self, place: int) -> Tensor:
        """(4, tile, tile) of a place."""
        down, across = divmod(place, self.side)
        size = self.atlas.shape[-1] // self.side
        return self.atlas[0, :, down * size : (down + 1) * size, across * size : (across + 1) * size]

    def take(self, other: "_Store", place: int, counts: tuple[int, ...]) -> None:
        """What the other, which is not larger, keeps at a place."""
        for mine, theirs, count, planes in zip(self.tables, other.tables, counts, PLANES, strict=True):
            rows = slice(place * count, (place + 1) * count)
            old = theirs[rows].unflatten(1, (planes, -1))
            mine[rows].unflatten(1, (planes, -1))[..., : old.shape[-1]] = old
        for mine, theirs in zip(self.spots, other.spots, strict=True):
            mine[place, : theirs.shape[1]] = theirs[place]
        for mine, theirs in zip(self.drawn, other.drawn, strict=True):
            mine[place, :, : theirs.shape[2]] = theirs[place]
        self.tile(place).copy_(other.tile(place))
        for mine, theirs in ((self.backs, other.backs), (self.insides, other.insides), (self.boxes, other.boxes)):
            mine[place] = theirs[place]


@dataclass(eq=False)
class _Orders:
    """What a batch tells the device, in memory that is used again: pinned, so that sending it waits for nothing.
    numbers: weights, of one kind of field after another, and the gauges last; rows: of the tables, likewise, and the
    heads' places last."""

    numbers: Tensor
    rows: Tensor

    @classmethod
    def make(cls, coefficients: int, most: int, pinned: bool) -> "_Orders":
        return cls(
            torch.empty(most * (coefficients + GAUGES), pin_memory=pinned),
            torch.empty(most * (coefficients + 1), dtype=torch.int64, pin_memory=pinned),
        )


class _Company:
    """The heads of one kind."""

    def __init__(self, device: torch.device, size: int, counts: FieldCounts, most: int):
        self._device, self._size, self._counts = device, size, astuple(counts)
        self._pinned = device.type == "cuda"
        self._store: _Store | None = None
        self._orders = _Orders.make(sum(self._counts), most, self._pinned)
        starts = torch.arange(most, device=device)
        self._starts = [starts * count for count in self._counts]
        self._done = torch.cuda.Event(blocking=True) if self._pinned else None  # else waiting takes a core
        axis = (2 * torch.arange(CANVAS, device=device) + 1) / CANVAS - 1
        self._still = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # (2, CANVAS, CANVAS)
        self.places: set[int] = set()

    # --- who is here

    def join(self, seat: _Seat) -> None:
        """Bring a portrait to the device. What is here stays as it is if that fails."""
        portrait = seat.portrait
        needed = tuple(-(-patch.height * patch.width // PATCH_STEP) * PATCH_STEP for patch in portrait.patches)
        store = self._fit(needed)
        place = next(number for number in range(store.side**2) if number not in self.places)
        mouth, eyes = portrait.patches
        fields = (portrait.head, portrait.face, mouth.flow, mouth.texture, eyes.flow, eyes.texture)
        for table, rows, count, planes in zip(store.tables, fields, self._counts, PLANES, strict=True):
            own = table[place * count : (place + 1) * count].unflatten(1, (planes, -1))
            laid = torch.from_numpy(rows).to(self._device).unflatten(1, (-1, planes)).mT
            own.zero_()[..., : laid.shape[-1]] = laid if planes == 4 else laid * (2 / CANVAS)
        for spots, patch in zip(store.spots, portrait.patches, strict=True):
            own = torch.arange(spots.shape[1], device=self._device).remainder_(CANVAS**2)
            down = torch.arange(patch.top, patch.top + patch.height, device=self._device) * CANVAS
            across = torch.arange(patch.left, patch.left + patch.width, device=self._device)
            own[: patch.height * patch.width] = (down[:, None] + across).flatten()
            spots[place] = own
        for drawn, patch in zip(store.drawn, portrait.patches, strict=True):
            drawn[place].zero_()[:, : patch.height * patch.width] = torch.from_numpy(patch.drawn).flatten(1)
        store.tile(place).copy_(torch.from_numpy(seat.layers.front).to(self._device).permute(2, 0, 1))
        store.backs[place] = torch.from_numpy(seat.layers.back).to(self._device).permute(2, 0, 1)
        store.insides[place] = torch.from_numpy(portrait.inside.picture).to(self._device).permute(2, 0, 1)
        store.boxes[place] = torch.from_numpy(portrait.inside.box).to(self._device)
        self._store = store
        self.places.add(place)
        seat.place, seat.portrait, seat.layers = place, None, None

    def leave(self, seat: _Seat) -> None:
        self.places.discard(seat.place)

    def _fit(self, needed: tuple[int, ...]) -> _Store:
        """The store, or a larger one with all that is in it, if one more portrait does not fit."""
        old = self._store
        full = old is None or len(self.places) == old.side**2
        reach = needed if old is None else tuple(map(max, needed, old.reach))
        if not full and reach == old.reach:
            return old
        side = math.isqrt(len(self.places)) + 1 if full else old.side
        store = _Store.make(self._device, side, reach, self._counts, self._size)
        for place in self.places:
            store.take(old, place, self._counts)
        return store

    # --- frames

    def show(self, jobs: list[_Show]) -> list[np.ndarray]:
        """(size, size, 3) uint8 each, in memory that is used again once nobody holds any of them."""
        weights, rows, places = self._order(jobs)
        frames = self._frames(weights, rows, places)
        host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=self._pinned)
        host.copy_(frames, non_blocking=True)
        if self._done is not None:
            self._done.record()
            self._done.synchronize()
        return list(host.numpy())

    def _order(self, jobs: list[_Show]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """On the device: weights (n * K,) and rows (n * K,) of each kind of field, after the weights the gauges
        (n * 2,), and the places (n,) of the heads."""
        count, total = len(jobs), sum(self._counts)
        numbers, rows = self._orders.numbers.numpy(), self._orders.rows.numpy()
        weights = np.stack([job.weights for job in jobs])
        places = np.array([job.seat.place for job in jobs])
        begin, sizes = 0, [count * kind for kind in self._counts]
        for kind, size in zip(self._counts, sizes, strict=True):
            first = begin // count
            numbers[begin : begin + size] = weights[:, first : first + kind].ravel()
            rows[begin : begin + size] = (places[:, None] * kind + np.arange(kind)).ravel()
            begin += size
        rows[begin : begin + count] = places
        numbers[begin : begin + count * GAUGES] = weights[:, -GAUGES:].ravel()
        sent = self._orders.numbers[: count * (total + GAUGES)].to(self._device, non_blocking=True)
        where = self._orders.rows[: count * (total + 1)].to(self._device, non_blocking=True)
        *kinds, last = where.split([*sizes, count])
        return list(sent.split([*sizes, count * GAUGES])), kinds, last

    def _mix(self, kind: int, weights: list[Tensor], rows: list[Tensor]) -> Tensor:
        """Fields of a kind, weighted and summed: (n, planes, pixels)."""
        count = len(rows[kind]) // self._counts[kind]
        mixed = F.embedding_bag(
            rows[kind], self._store.tables[kind], self._starts[kind][:count], mode="sum",
            per_sample_weights=weights[kind],
        )  # fmt: skip
        return mixed.unflatten(1, (PLANES[kind], -1))

    def _frames(self, weights: list[Tensor], rows: list[Tensor], places: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 on the device. As in CpuRenderer.render."""
        head = _enlarged(self._mix(HEAD, weights, rows).unflatten(2, (32, 32)), CANVAS)
        still = (head + self._still).permute(0, 2, 3, 1)  # where each canvas pixel lies on the still head
        spots = [spots.index_select(0, places).unsqueeze(1) for spots in self._store.spots]
        moved = self._move(still, spots, weights, rows).add_(head)
        picture = self._pick(moved, places)
        return self._paint(picture, still, spots, weights, rows, places)

    def _move(self, still: Tensor, spots: list[Tensor], weights: list[Tensor], rows: list[Tensor]) -> Tensor:
        """The face's displacement, carried by the head: (n, 2, CANVAS, CANVAS) in half sides of the picture."""
        flow = _enlarged(self._mix(FACE, weights, rows).unflatten(2, (128, 128)), CANVAS)
        for kind, spot in zip((MOUTH_FLOW, EYES_FLOW), spots, strict=True):
            flow.view(len(flow), 2, -1).scatter_add_(2, spot.expand(-1, 2, -1), self._mix(kind, weights, rows))
        return F.grid_sample(flow, still, padding_mode="border", align_corners=False)

    def _pick(self, moved: Tensor, places: Tensor) -> Tensor:
        """Each frame's person out of its portrait, over its background: (3, n, size, size) float in 0..255."""
        store = self._store
        # colour planes first and frames one above the other, as the atlas has them: one look-up, and no copy before it
        tile = store.atlas.shape[-1] // store.side
        halves = FINER * self._size / (tile * store.side)
        points = _enlarged(moved.transpose(0, 1) * halves, self._size)  # (2, n, size, size)
        points[0] += store.axis
        points[1] += store.axis[:, None]
        # beyond what is kept of a portrait is what lies at its edge, as on the processor, and never the next one
        points.clamp_(0.5 * store.pixel, (tile - 0.5) * store.pixel)
        points += store.corners.index_select(1, places)[:, :, None, None]
        grid = points.view(2, -1, self._size).permute(1, 2, 0)[None]
        picked = F.grid_sample(store.atlas, grid, padding_mode="border", align_corners=False)
        picked = picked.view(4, len(places), self._size, self._size)
        back = store.backs.index_select(0, places).transpose(0, 1).float()
        return picked[:3].addcmul_(back, picked[3], value=1 / 255)

    def _paint(
        self, picture: Tensor, still: Tensor, spots: list[Tensor], weights: list[Tensor], rows: list[Tensor],
        places: Tensor,
    ) -> Tensor:  # fmt: skip
        """The patches' textures, and what the mouths hold, over the picture, where the head carried them: (n, size,
        size, 3) uint8."""
        texture = torch.zeros(len(still), 4, CANVAS * CANVAS, device=self._device)
        opening, closed = weights[-1].view(-1, GAUGES, 1).split(1, 1)
        drawn = [drawn.index_select(0, places) for drawn in self._store.drawn]
        mouth = _part_lips(self._mix(MOUTH_TEXTURE, weights, rows), drawn[0], opening.clamp(0, WIDEST))
        eyes = _close_lids(self._mix(EYES_TEXTURE, weights, rows), drawn[1], lids.closure(closed))
        for mixed, spot in zip((mouth, eyes), spots, strict=True):
            texture.scatter_add_(2, spot.expand(-1, 4, -1), mixed)
        carried = F.grid_sample(
            texture.view(-1, 4, CANVAS, CANVAS), still, padding_mode="zeros", align_corners=False
        ).transpose(0, 1)
        opacity = carried[3].clone()
        carried[:3] /= opacity.clamp(min=1.0)
        carried[3] = 1 - torch.maximum(0.1 * opacity, opacity.clamp(max=1.0))  # what is kept; as network.opacity
        carried[:3] += 0.5  # for rounding, here where planes are small
        layer = _enlarged(torch.cat([carried, opacity[None].clamp(0, 1)]), self._size)
        found = self._held(still, places)
        shown = found[3]
        layer[:3] *= 1 - shown  # of the half for rounding, too, so that it is added again
        layer[:3] += layer[4] * shown * found[:3] + 0.5 * shown
        frame = layer[:3].addcmul_(picture, layer[3])
        return self._bytes(frame)

    def _held(self, still: Tensor, places: Tensor) -> Tensor:
        """What the mouths hold, where the head carried it: (4, n, size, size), colours and how far they are shown."""
        store = self._store
        boxes = store.boxes.index_select(0, places)[:, :, None, None]
        where = _enlarged(still.permute(0, 3, 1, 2), self._size).add_(1).mul_(0.5)
        grid = where.sub_(boxes[:, :2]).div_(boxes[:, 2:]).mul_(2).sub_(1).permute(0, 2, 3, 1)
        held = store.insides.index_select(0, places)
        return F.grid_sample(held, grid, padding_mode="zeros", align_corners=False).transpose(0, 1)

    def _bytes(self, frame: Tensor) -> Tensor:
        """(3, n, size, size) float, greater by 0.5 than what it shall be -> (n, size, size, 3) uint8."""
        made = torch.empty((*frame.shape[1:], 3), dtype=torch.uint8, device=self._device)
        return made.copy_(frame.clamp_(0, 255).permute(1, 2, 3, 0))


def _part_lips(texture: Tensor, drawn: Tensor, opening: Tensor) -> Tensor:
    """As cpu.part_lips: texture (n, 4, pixels), drawn (n, 2, pixels), opening (n, 1, 1)."""
    texture = texture * lips.gain(texture[:, 3:])
    depth, shown = drawn.split(1, 1)
    return torch.cat([texture[:, :3], uncovered(texture[:, 3:], shown * apart(depth, opening))], 1)


def _close_lids(texture: Tensor, drawn: Tensor, closure: Tensor) -> Tensor:
    """As cpu.close_lids: texture (n, 4, pixels), drawn (n, 6, pixels), closure (n, 1, 1)."""
    colour, way, there, lashes = drawn.split([3, 1, 1, 1], 1)
    cover, light = lids.come_down(way, there, closure, lashes, torch.exp)
    return texture * (1 - cover) + cover * torch.cat([colour * light, torch.ones_like(way)], 1)


def _enlarged(planes: Tensor, side: int) -> Tensor:
    """(a, b, h, w) -> (a, b, side, side), bilinear, as cv2.resize."""
    return F.interpolate(planes, size=(side, side), mode="bilinear", align_corners=False)
