"""The CPU renderer: the portrait itself when nothing moves, the formula of training when something does."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.renderer import lips
from engine.renderer.boxes import eyes_box, mouth_box
from engine.renderer.cpu import (
    CANVAS,
    FINER,
    GAUGES,
    CpuRenderer,
    FieldCounts,
    PreparedPortrait,
    away,
    blinking,
    fine_layers,
    lay_patch,
    margin,
    portrait_inputs,
    prepare,
    resting,
)
from engine.renderer.inside import INSIDE, Place, depth, draw
from engine.renderer.lids import LIDS, Lids, crop_of
from engine.renderer.matte import crown, fill, mirrors, part, scaled
from engine.renderer.outline import Outline

COUNTS = FieldCounts(head=3, face=3, mouth_flow=2, mouth_texture=3, eyes_flow=2, eyes_texture=2)
NUMBER = 15
#: Where the eyes of such a face are in their box.
EYES = (
    Outline(0.3, 0.28, 0.17, 0.0, 0.2, 0.02, -0.2, 0.12, 0.0, -0.1),
    Outline(0.7, 0.27, 0.16, -0.02, 0.2, 0.0, -0.2, 0.12, 0.02, -0.1),
)
PLACES = {"head": (32, 32), "face": (128, 128), "mouth": (96, 96), "eyes": (48, 96)}
#: A face framed as in training, in YuNet's order.
KEYPOINTS = np.array([[0.41, 0.4], [0.58, 0.39], [0.5, 0.49], [0.43, 0.58], [0.57, 0.59]], np.float32)


def smooth(rng: np.random.Generator, count: int, height: int, width: int, knots: int = 6) -> np.ndarray:
    """(count, height, width) random fields as smooth as a network's, about within -1..1."""
    planes = [rng.normal(0, 0.4, (knots, knots)).astype(np.float32) for _ in range(count)]
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in planes])


def fade(height: int, width: int) -> np.ndarray:
    """One inside, zero at the border, as patches are."""
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 0.5 for n in (height, width))
    return (rows[:, None] * columns).astype(np.float32)


def make_fields(seed: int, flow: float = 0.008, texture: float = 0.4) -> dict[str, np.ndarray]:
    """Fields of a realistic scale: a unit of coefficient moves points by some thousandths of the picture (a few pixels
    of 512), and textures cover up to about half."""
    rng = np.random.default_rng(seed)
    fields = {}
    for name in ("head", "face"):
        planes = smooth(rng, 2 * getattr(COUNTS, name), *PLACES[name]) * flow
        fields[name] = planes.reshape(1, -1, 2, *PLACES[name])
    for name in ("mouth", "eyes"):
        flows, textures = getattr(COUNTS, f"{name}_flow"), getattr(COUNTS, f"{name}_texture")
        planes = smooth(rng, 2 * flows + 4 * textures, *PLACES[name]) * fade(*PLACES[name])
        planes[: 2 * flows] *= flow
        planes[2 * flows :] *= texture
        fields[name] = planes[None]
    fields["share"] = np.clip(smooth(rng, 1, INSIDE, INSIDE, 12) + 0.4, 0, 1)[None] * fade(INSIDE, INSIDE)
    fields["place"] = Place(0.52, 0.48, 0.4, 0.05, 0.02, 0.06, 0.7, 0.65).vector()[None]
    fields["sight"] = np.stack([eye.vector() for eye in EYES])[None]
    fields["lips"] = Outline(0.52, 0.48, 0.3, 0.0, *[0.0] * 6).vector()[None]
    fields["matte"] = np.full((1, 1, 128, 128), 20.0)  # which the portrait network makes for training alone
    return {name: np.ascontiguousarray(field, np.float32) for name, field in fields.items()}


def scene(size: int, seed: int = 0) -> np.ndarray:
    """A picture with shapes, shades and soft edges."""
    rng = np.random.default_rng(seed)
    picture = np.stack(list(smooth(rng, 3, 512, 512, 8)), -1) * 70 + 128
    for _ in range(12):
        colour, (x, y) = rng.integers(0, 256, 3).tolist(), rng.integers(0, 512, 2).tolist()
        cv2.circle(picture, (x, y), int(rng.integers(10, 60)), colour, -1, cv2.LINE_AA)
    picture = cv2.GaussianBlur(np.clip(picture, 0, 255), (0, 0), 2).astype(np.uint8)
    return picture if size == 512 else cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def portrait(seed: int = 0, side: int = 512, keypoints: np.ndarray = KEYPOINTS, **fields: float) -> PreparedPortrait:
    own = np.append(np.random.default_rng(seed + 1).normal(size=NUMBER), [0.02, 0.1]).astype(np.float32)
    latent = np.zeros(4, np.float32)
    all_is_the_person = np.ones((side, side), np.float32)
    fields = make_fields(seed, **fields)
    return prepare(scene(side, seed), all_is_the_person, keypoints, COUNTS, latent, own, fields, 0 * latent)


def moved(prepared: PreparedPortrait, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Coefficients away from the portrait's own."""
    away = np.random.default_rng(seed).normal(0, scale, NUMBER)
    return prepared.coefficients + np.append(away, [0, 0]).astype(np.float32)


#: What gauges add for lips that part, and for eyes that close.
PARTED, CLOSED = np.eye(NUMBER + GAUGES, dtype=np.float32)[NUMBER:] * [[0.08], [0.6]]


def only(prepared: PreparedPortrait, kind: str, value: float = 1.0) -> np.ndarray:
    """Coefficients that differ from the portrait's own in those of one kind."""
    coefficients, start = prepared.coefficients.copy(), 0
    for name, count in vars(COUNTS).items():
        if name == kind:
            coefficients[start : start + count] += value
        start += count
    return coefficients


def drawn(tensors: dict, side: int, seed: int) -> list:
    """Fields, as tensors -> what the mouth of a scene holds, and its closed lids, as training has them."""
    place = Place(*tensors["place"][0].tolist())
    shut = Lids.of(EYES, crop_of(scene(side, seed), eyes_box(KEYPOINTS)))
    held = np.dstack([draw(place, INSIDE), depth(place, INSIDE)])
    closed = np.dstack([shut.picture[..., :3] / 255, shut.picture[..., 3:], np.full(LIDS, shut.lashes)])
    return [tensors["place"].new_tensor(picture.transpose(2, 0, 1)[None]) for picture in (held, closed)]


def in_torch(seed: int, size: int, weights: np.ndarray, **fields: float) -> np.ndarray:
    """The same frame by the formula of training, at every pixel's centre: (size, size, 3) float in 0..255."""
    torch = pytest.importorskip("torch")
    from engine.renderer.network import Fields, RendererShape, mix
    from engine.training.stage1 import grid_points, render

    tensors = {name: torch.from_numpy(field) for name, field in make_fields(seed, **fields).items()}
    boxes = [torch.from_numpy(box(KEYPOINTS))[None] for box in (mouth_box, eyes_box)]
    shape, weights = RendererShape(latent=4, **vars(COUNTS)), torch.from_numpy(weights)[None, None]
    motion = mix(shape, Fields(**tensors), weights, *boxes, *drawn(tensors, size, seed))
    picture = torch.from_numpy(scene(size, seed)).permute(2, 0, 1)[None].float() / 255
    points = grid_points(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), size, size)
    return render(motion, picture, points).clamp(0, 1).view(size, size, 3).numpy() * 255


@pytest.fixture
def plain(monkeypatch):
    """Pictures shown as they are, not crisper between their pixels: where things are is what is tested."""
    monkeypatch.setattr("engine.renderer.cpu.CRISP", 0.0)


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.usefixtures("plain")
def test_frames_are_what_training_rendered(size, seed):
    prepared = portrait(seed, size)
    coefficients = moved(prepared, seed)
    frame = CpuRenderer(prepared, size).render(coefficients)
    truth = in_torch(seed, size, coefficients - prepared.coefficients)
    away = np.abs(frame - truth)[4:-4, 4:-4]
    still = np.abs(scene(size, seed) - truth)[4:-4, 4:-4]
    assert still.mean() > 2.5  # something happens
    assert away.mean() < 0.6  # of 255, of which rounding to bytes is 0.25
    assert np.percentile(away, 99.9) < 4


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("gauge", "box"), [(PARTED, mouth_box), (CLOSED, eyes_box)], ids=["lips", "lids"])
@pytest.mark.usefixtures("plain")
def test_lips_part_and_lids_close_as_in_training(size, seed, gauge, box):
    prepared = portrait(seed, size)
    still = moved(prepared, seed)
    coefficients = still + gauge.astype(np.float32)
    frame = CpuRenderer(prepared, size).render(coefficients)
    truth, without = (in_torch(seed, size, away(c, prepared.coefficients)) for c in (coefficients, still))
    changed = np.abs(truth - without).max(-1) > 8
    rows, columns = np.nonzero(changed)
    x, y, width, height = box(KEYPOINTS) * size
    assert len(rows) > 0.01 * width * height
    reach = 0.03 * size  # the head's motion
    assert x - reach < columns.min() < columns.max() < x + width + reach
    assert y - reach < rows.min() < rows.max() < y + height + reach
    off = np.abs(frame - truth)[4:-4, 4:-4]
    assert off.mean() < 0.6
    # edges are as sharp as a canvas pixel, which is two of the larger frame
    assert off[changed[4:-4, 4:-4]].mean() < 0.25 * np.abs(truth - without)[changed].mean()


@pytest.mark.parametrize("kind", list(vars(COUNTS)))
@pytest.mark.usefixtures("plain")
def test_each_kind_of_field_is_what_training_rendered(kind):
    prepared = portrait(4, 256)
    coefficients = only(prepared, kind)
    frame = CpuRenderer(prepared, 256).render(coefficients)
    truth = in_torch(4, 256, coefficients - prepared.coefficients)
    still = scene(256, 4)
    changed = np.abs(still - truth).max(-1) > 2
    assert changed.mean() > 0.01
    assert np.abs(frame - truth)[4:-4, 4:-4].mean() < 0.6
    inside = np.abs(frame - truth)[changed].mean()
    assert inside < 0.1 * np.abs(still - truth)[changed].mean() + 0.5


@pytest.mark.parametrize("size", [128, 256, 300, 512, 1024])
def test_at_its_own_motion_the_frame_is_the_portrait(size):
    prepared = portrait()
    frame = CpuRenderer(prepared, size).render(prepared.coefficients)
    kind = cv2.INTER_AREA if size < 512 else cv2.INTER_CUBIC
    expected = prepared.pixels if size == 512 else cv2.resize(prepared.pixels, (size, size), interpolation=kind)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert np.array_equal(frame, expected)


def test_frames_of_all_sizes_show_the_same():
    prepared = portrait()
    coefficients = moved(prepared)
    truth = CpuRenderer(prepared, 512).render(coefficients)
    for size in (128, 300, 1024):
        frame = CpuRenderer(prepared, size).render(coefficients)
        assert frame.shape == (size, size, 3)
        same = cv2.resize(frame, (512, 512), interpolation=cv2.INTER_AREA if size > 512 else cv2.INTER_CUBIC)
        away = np.abs(same.astype(int) - (truth if size >= 512 else cv2.blur(truth, (2, 2))))
        assert away[8:-8, 8:-8].mean() < 2


def test_frames_of_one_renderer_do_not_show_those_before():
    prepared = portrait()
    renderer = CpuRenderer(prepared, 256)
    for seed in range(4):
        coefficients = moved(prepared, seed)
        assert np.array_equal(renderer.render(coefficients), CpuRenderer(prepared, 256).render(coefficients))


@pytest.mark.parametrize("side", [100, 128, 200])
def test_what_grows_grows_without_blocks(side):
    ramp = np.repeat(np.arange(side, dtype=np.float32)[None], side, 0)
    steps = np.diff(scaled(ramp, 256)[:, 4:-4])
    assert np.allclose(steps, side / 256, atol=0.01)
    assert np.allclose(np.diff(scaled(ramp, side // 2)), 2, atol=0.01)


def test_a_matte_that_is_enlarged_has_no_blocks():
    through = fine_layers(with_background(1, 512), 1024).front[..., 3]
    edge, size = margin(1024) * FINER, 1024 * FINER
    own = through[edge:, edge:][FINER // 2 : size : FINER, FINER // 2 : size : FINER].astype(int)
    soft = (own > 20) & (own < 235)
    assert soft.sum() > 1000
    # of blocks of two, every other pixel is as the one before it
    assert (own[:, 0::2] != own[:, 1::2])[soft[:, 0::2]].mean() > 0.5


def person(side: int, middle: tuple[float, float] = (0.5, 0.55), radius: float = 0.3) -> np.ndarray:
    """Matte (side, side) of a round person with a soft edge."""
    y, x = np.mgrid[:side, :side]
    away = np.hypot((x + 0.5) / side - middle[0], (y + 0.5) / side - middle[1])
    return (0.5 + (radius - away) * 40).clip(0, 1).astype(np.float32)


def with_background(seed: int, side: int, **fields: float) -> PreparedPortrait:
    """As portrait, in front of a background."""
    own = np.append(np.random.default_rng(seed + 1).normal(size=NUMBER), [0.02, 0.1]).astype(np.float32)
    made = make_fields(seed, **fields)
    latent = np.zeros(4, np.float32)
    return prepare(scene(side, seed), person(side), KEYPOINTS, COUNTS, latent, own, made, 0 * latent)


def far_from_the_person(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.hypot((x + 0.5) / size - 0.5, (y + 0.5) / size - 0.55) > 0.44


@pytest.mark.parametrize("size", [256, 512])
def test_the_background_stays_still_while_the_person_moves(size):
    prepared = with_background(1, 512)
    renderer, rest, away = CpuRenderer(prepared, size), at_rest(prepared, size), far_from_the_person(size)
    assert away.mean() > 0.3
    for seed in range(3):
        frame = renderer.render(moved(prepared, seed))
        assert np.array_equal(frame[away], rest[away])
        assert np.abs(frame[~away].astype(int) - rest[~away]).mean() > 3


def test_at_rest_a_portrait_with_a_background_comes_back():
    prepared = with_background(1, 512)
    frame, rest = CpuRenderer(prepared, 512).render(prepared.coefficients).astype(int), prepared.pixels
    whole = prepared.matte == 1
    assert whole.mean() > 0.2
    assert np.array_equal(frame[whole], rest[whole])
    assert np.array_equal(frame[far_from_the_person(512)], rest[far_from_the_person(512)])
    assert np.abs(frame - rest).max() <= 2


def test_layers_are_those_of_training():
    torch = pytest.importorskip("torch")
    from engine.renderer.network import Fields, Layers, RendererShape, layers, mix
    from engine.training.stage1 import grid_points, render_layers

    prepared = with_background(2, 256)
    coefficients = moved(prepared, 2)
    frame = CpuRenderer(prepared, 256).render(coefficients)
    tensors = {name: torch.from_numpy(field) for name, field in make_fields(2).items()}
    boxes = [torch.from_numpy(box(KEYPOINTS))[None] for box in (mouth_box, eyes_box)]
    weights = torch.from_numpy(coefficients - prepared.coefficients)[None, None]
    shape = RendererShape(latent=4, **vars(COUNTS))
    motion = mix(shape, Fields(**tensors), weights, *boxes, *drawn(tensors, 256, 2))
    picture = torch.from_numpy(scene(256, 2)).permute(2, 0, 1)[None].float() / 255
    matte = torch.from_numpy(prepared.matte)[None, None]
    parted = layers(picture, matte)
    back = torch.from_numpy(part(prepared.pixels, prepared.matte).back).permute(2, 0, 1)[None] / 255
    known = torch.nn.functional.max_pool2d(matte, 33, 1, 16) == 0  # elsewhere each fills in what it thinks
    assert torch.allclose((parted.back - back) * known, torch.zeros(1), atol=1 / 255)
    parted = Layers(torch.cat([(picture - (1 - matte) * back).clamp(min=0), 1 - matte], 1), back)
    points = grid_points(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 256, 256)
    truth = render_layers(motion, parted, points).clamp(0, 1).view(256, 256, 3).numpy() * 255
    away = np.abs(frame - truth)[4:-4, 4:-4]
    assert away.mean() < 0.8
    assert np.percentile(away, 99.5) < 12


def test_what_the_person_hides_is_filled_in_from_around():
    picture = np.zeros((64, 64, 3), np.float32)
    picture[:, :32], picture[:, 32:] = [200, 40, 10], [10, 90, 220]
    hole = np.zeros((64, 64), np.float32)
    hole[20:44, 8:24] = 1
    filled = fill(picture * (1 - hole[..., None]), 1 - hole)
    assert np.abs(filled - picture)[20:44, 8:16].max() < 25
    assert np.array_equal(filled[hole == 0], picture[hole == 0])
    assert np.isfinite(fill(picture, np.zeros((64, 64), np.float32))).all()  # a person who fills the picture


def test_beside_the_person_the_wall_goes_on():
    """What a head that turns uncovers has the wall's texture, and a shelf goes on behind it."""
    size, rng = 512, np.random.default_rng(3)
    wall = cv2.GaussianBlur(rng.normal(0, 60, (size, size, 3)), (0, 0), 1.5) + 150
    wall[230:246] -= 80  # a shelf
    picture = wall.clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:size, :size]
    away = np.hypot(x - 256, y - 282) - 150
    matte = (0.5 - away / 4).clip(0, 1).astype(np.float32)
    shown = np.where(matte[..., None] > 0.5, np.uint8(20), picture)
    back = part(shown, matte).back

    def detail(where: np.ndarray) -> float:
        return float((cv2.Laplacian(back.astype(np.float32), cv2.CV_32F)[where] ** 2).mean())

    beside, beyond = (away > -25) & (away < -2), away > 25
    plain = np.abs(y - 300) < 45  # without the shelf, whose edges count for more; above, walls are bent, and have more
    assert 0.5 < detail(beside & plain) / detail(beyond & plain) < 2
    assert detail(beside) > 0.5 * detail(beyond)
    dark = back[200:280, 118].mean(1) < 120  # ten pixels inside the outline
    assert np.abs(np.flatnonzero(dark).mean() + 200 - 237.5) < 3
    assert np.array_equal(back[beyond], picture[beyond])
    # nobody sees past who fills the picture
    assert all((places[5, 9] == [9, 5]).all() for places, _ in mirrors(np.ones((64, 64), bool)))


def test_above_the_head_the_wall_goes_on():
    """Where the mirror images of both sides meet, above a head that nearly touches the edge, there is no smear."""
    size, rng = 512, np.random.default_rng(3)
    wall = cv2.GaussianBlur(rng.normal(0, 60, (size, size, 3)), (0, 0), 1.5) + 150
    picture = wall.clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:size, :size]
    matte = (0.5 - (np.hypot(x - 256, y - 162) - 150) / 4).clip(0, 1).astype(np.float32)
    back = part(np.where(matte[..., None] > 0.5, np.uint8(20), picture), matte).back.astype(np.float32)
    detail = (cv2.Laplacian(back, cv2.CV_32F) ** 2).mean(2)
    assert np.median(detail[2:34, 250:262]) > 0.3 * np.median(detail[2:34, 20:120])


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63), st.integers(1, 30)), max_size=4))
def test_mirror_images_share_what_is_hidden(holes):
    y, x = np.mgrid[:64, :64]
    hidden = np.any([np.hypot(x - cx, y - cy) < radius for cx, cy, radius in holes] or [np.zeros((64, 64), bool)], 0)
    (right, share), (left, rest) = mirrors(hidden)
    assert np.allclose(share + rest, 1) and (share >= 0).all() and (rest >= 0).all()
    assert np.isfinite(right).all() and np.isfinite(left).all()


def at_rest(prepared: PreparedPortrait, size: int) -> np.ndarray:
    """The portrait at the size of the frame."""
    if len(prepared.pixels) == size:
        return prepared.pixels
    kind = cv2.INTER_AREA if len(prepared.pixels) > size else cv2.INTER_CUBIC
    return cv2.resize(prepared.pixels, (size, size), interpolation=kind)


def test_detail_survives_motion():
    """What moves by parts of a pixel keeps its fine detail: picked from the plain portrait, half, and four fifths if
    what is between its pixels were not made crisper. It gains an eighth, which faces that stretch lose."""
    rng = np.random.default_rng(0)
    prepared = portrait(texture=0.0)
    prepared = replace(prepared, pixels=cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 0.7))

    def detail(picture: np.ndarray) -> float:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        return float((cv2.Laplacian(grey, cv2.CV_32F)[64:192, 64:192] ** 2).mean())

    renderer, kept = CpuRenderer(prepared, 256), []
    for seed in range(8):
        frame = renderer.render(moved(prepared, seed))
        assert not np.array_equal(frame, prepared.pixels)
        kept.append(detail(frame) / detail(prepared.pixels))
    assert 0.95 < np.mean(kept) < 1.15


def test_frames_are_the_callers_to_keep():
    prepared = portrait()
    renderer = CpuRenderer(prepared, 256)
    first = renderer.render(moved(prepared, 1))
    kept = first.copy()
    renderer.render(moved(prepared, 2))
    assert np.array_equal(first, kept)
    assert np.array_equal(renderer.render(prepared.coefficients), at_rest(prepared, 256))


def with_nothing_inside(prepared: PreparedPortrait) -> PreparedPortrait:
    return replace(prepared, inside=replace(prepared.inside, picture=np.zeros((INSIDE, INSIDE, 4), np.float32)))


def test_texture_covers_the_mouth_and_follows_the_head():
    prepared = with_nothing_inside(portrait(texture=0.0))
    mouth = prepared.patches[0]
    texture = np.zeros((COUNTS.mouth_texture, mouth.height, mouth.width, 4), np.float32)
    middle = slice(mouth.height // 2 - 8, mouth.height // 2 + 8), slice(mouth.width // 2 - 12, mouth.width // 2 + 12)
    texture[0][middle] = [255, 0, 0, 1]  # an opaque red bar in the middle of the patch
    painted = replace(mouth, texture=texture.reshape(COUNTS.mouth_texture, -1))
    head = prepared.head.copy()
    head[0] = np.tile([-10.0, 6.0], head.shape[1] // 2)  # where a point comes from: 10 left, 6 down on the canvas
    prepared = replace(prepared, patches=(painted, prepared.patches[1]), head=head)
    texture_at = COUNTS.head + COUNTS.face + COUNTS.mouth_flow
    for size in (256, 512, 300):
        renderer = CpuRenderer(prepared, size)
        for shift in (0.0, 1.0):
            coefficients = prepared.coefficients.copy()
            coefficients[texture_at] += 1
            coefficients[0] += shift
            frame = renderer.render(coefficients).astype(int)
            red = (frame[..., 0] > 230) & (frame[..., 1] < 25)
            rows, columns = np.nonzero(red)
            scale = size / CANVAS
            centre = np.array([columns.mean(), rows.mean()]) / scale
            expected = np.array([mouth.left + mouth.width // 2, mouth.top + mouth.height // 2]) - 0.5
            assert np.abs(centre - expected - shift * np.array([10, -6])).max() < 1
            assert 0.8 < len(rows) / (16 * 24 * scale**2) < 1.05
    box = mouth_box(KEYPOINTS) * CANVAS
    assert np.abs(np.array([mouth.left, mouth.top]) - box[:2]).max() <= 1


def test_what_the_mouth_holds_shows_where_its_texture_covers_as_fine_as_the_frame():
    prepared = portrait(texture=0.0)
    mouth = prepared.patches[0]
    texture = np.zeros((COUNTS.mouth_texture, mouth.height, mouth.width, 4), np.float32)
    opened = slice(mouth.height // 2 - 8, mouth.height // 2 + 8), slice(mouth.width // 2 - 12, mouth.width // 2 + 12)
    texture[0][opened] = [200, 0, 0, 1]  # lips open on something red
    held = np.zeros((INSIDE, INSIDE, 4), np.float32)
    held[:, : INSIDE // 2] = [0, 250, 0, 1]  # but to the left there is something green, with a sharp edge
    painted = replace(mouth, texture=texture.reshape(COUNTS.mouth_texture, -1))
    head = prepared.head.copy()
    head[0] = np.tile([-10.0, 6.0], head.shape[1] // 2)
    prepared = replace(
        prepared, patches=(painted, prepared.patches[1]), head=head, inside=replace(prepared.inside, picture=held)
    )
    for size in (256, 512, 1024):
        renderer, scale = CpuRenderer(prepared, size), size / CANVAS
        for shift in (0.0, 1.0):
            coefficients = prepared.coefficients.copy()
            coefficients[COUNTS.head + COUNTS.face + COUNTS.mouth_flow] += 1
            coefficients[0] += shift
            frame = renderer.render(coefficients).astype(int)
            x, y, width, height = mouth_box(KEYPOINTS) * CANVAS
            edge = (np.array([x + width / 2, y + height / 2]) + shift * np.array([10, -6])) * scale
            row = frame[int(edge[1])]
            green = (row[:, 1] > 230) & (row[:, 0] < 25) & (row[:, 2] < 25)
            texel = width / INSIDE * scale
            assert np.flatnonzero(green).max() == pytest.approx(edge[0], abs=texel + 1)
            assert (row[int(edge[0] + texel + 2) : int(edge[0] + 9 * scale), 0] > 180).all()  # red, and at once
    closed = prepared.coefficients
    assert np.array_equal(CpuRenderer(prepared, 512).render(closed), at_rest(prepared, 512))


def test_beyond_the_edge_of_a_portrait_it_is_mirrored():
    prepared = portrait(texture=0.0)
    head = prepared.head.copy()
    head[0] = np.tile([-10.0, 0.0], head.shape[1] // 2)
    prepared = replace(prepared, head=head)
    coefficients = prepared.coefficients.copy()
    coefficients[0] += 1
    size = len(prepared.pixels)
    frame, by = CpuRenderer(prepared, size).render(coefficients).astype(int), 10 * size // CANVAS
    shown = at_rest(prepared, size).astype(int)
    top = slice(0, size // 5)  # above mouth and eyes
    assert np.ptp(shown[top, :by], axis=1).mean() > 1  # there is something to mirror
    assert np.abs(frame[top, by:] - shown[top, :-by]).mean() < 0.5
    assert np.abs(frame[top, :by] - shown[top, by:0:-1]).mean() < 0.5


def test_hair_near_an_edge_is_not_mirrored_there():
    """A head that nods would bring it down from above; a person who reaches the edge goes on beyond it."""
    prepared = with_background(1, 256, texture=0.0)
    y, x = np.mgrid[:256, :256]
    round_head = np.hypot(x - 128, y - 70) < 60  # ten pixels below the upper edge, and shoulders that leave the picture
    matte = (round_head | (y > 200)).astype(np.float32)
    pixels = np.repeat(np.where(matte > 0, np.uint8(30), np.uint8(200))[..., None], 3, 2)
    head = prepared.head.copy()
    head[0] = np.tile([0.0, -20.0], head.shape[1] // 2)
    prepared = replace(prepared, pixels=pixels, matte=matte, head=head)
    coefficients = prepared.coefficients.copy()
    coefficients[0] += 1
    frame = CpuRenderer(prepared, 256).render(coefficients)
    assert (frame[:25] > 150).all()  # wall: the head is twenty pixels lower
    assert (frame[40:80, 128] < 60).all()
    coefficients[0] -= 2
    up = CpuRenderer(prepared, 256).render(coefficients)
    assert (up[-15:, :40] < 60).all() and (up[-15:, -40:] < 60).all()


def test_a_head_that_the_upper_edge_cuts_gets_a_crown():
    """Mirrored there, it would wear itself upside down when it nods: a bun that grows wider upwards."""
    prepared = with_background(1, 256, texture=0.0)
    y, x = np.mgrid[:256, :256]
    matte = (np.hypot(x - 128, y - 50) < 60).astype(np.float32)  # 33 pixels of its edge are cut off on each side
    pixels = np.repeat(np.where(matte > 0, np.uint8(30), np.uint8(200))[..., None], 3, 2)
    head = prepared.head.copy()
    head[0] = np.tile([0.0, -15.0], head.shape[1] // 2)  # 15 pixels down
    prepared = replace(prepared, pixels=pixels, matte=matte, head=head)
    coefficients = prepared.coefficients.copy()
    coefficients[0] += 1
    frame = CpuRenderer(prepared, 256).render(coefficients)
    widths = (frame[:20, :, 0] < 115).sum(1)
    assert widths[0] < widths[15] - 20  # at the edge and where the edge was
    assert (np.diff(widths) >= 0).all() and widths[10] > 20


@given(
    rows=st.lists(st.lists(st.booleans(), min_size=24, max_size=24), min_size=2, max_size=2),
    fills=st.sampled_from(["neither", "left", "right", "both"]),
)
def test_a_crown_stands_above_what_the_edge_cuts_alone(rows, fills):
    person = np.zeros((24, 24), bool)
    person[:4], person[4:] = rows[0], rows[1]
    person[0, :3] |= fills in ("left", "both")
    person[0, -3:] |= fills in ("right", "both")
    theirs = crown(person, 4)
    assert (theirs is None) == person[0].all()
    if theirs is None:
        return
    assert theirs.shape == (4, 24)
    assert ((theirs >= 0) & (theirs <= 1)).all()
    assert theirs.any() <= person[0].any()


def test_texture_may_darken_and_brighten_but_never_wraps_around():
    prepared = with_nothing_inside(portrait(texture=0.0))
    patches = []
    for patch, gain in zip(prepared.patches, (400.0, -400.0), strict=True):
        texture = np.zeros((patch.texture.shape[0], patch.height, patch.width, 4), np.float32)
        texture[..., :3] = gain
        patches.append(replace(patch, texture=texture.reshape(len(texture), -1)))
    prepared = replace(prepared, patches=tuple(patches))
    for kind, value in (("mouth_texture", 255), ("eyes_texture", 0)):
        frame = CpuRenderer(prepared, 256).render(only(prepared, kind))
        patch = prepared.patches[kind == "eyes_texture"]
        inside = frame[patch.top + 2 : patch.top + patch.height - 2, patch.left + 2 : patch.left + patch.width - 2]
        assert (inside == value).all()
        outside = np.ones((256, 256), bool)
        outside[patch.top - 2 : patch.top + patch.height + 2, patch.left - 2 : patch.left + patch.width + 2] = False
        assert np.array_equal(frame[outside], at_rest(prepared, 256)[outside])


@given(
    x=st.floats(-0.5, 1.5),
    y=st.floats(-0.5, 1.5),
    unit=st.floats(0.05, 0.5),
    turn=st.floats(-0.6, 0.6),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_faces_anywhere_and_motion_of_any_size_render(x, y, unit, turn, scale):
    keypoints = (KEYPOINTS - KEYPOINTS[2]) * (unit / 0.19)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    keypoints = (keypoints @ rotation.T + [x, y]).astype(np.float32)
    prepared = portrait(keypoints=keypoints, side=256)
    for patch in prepared.patches:
        assert 0 <= patch.left <= patch.left + patch.width <= CANVAS
        assert 0 <= patch.top <= patch.top + patch.height <= CANVAS
        assert np.isfinite(patch.flow).all()
    renderer = CpuRenderer(prepared, 128)
    assert renderer.render(moved(prepared, scale=scale)).shape == (128, 128, 3)
    assert np.array_equal(renderer.render(prepared.coefficients), at_rest(prepared, 128))


def test_a_patch_is_its_field_on_the_canvas():
    box = np.array([0.3, 0.55, 0.35, 0.35], np.float32)
    axis = (np.arange(96) + 0.5) / 96
    across = np.broadcast_to(axis, (96, 96)).astype(np.float32)
    fields = np.stack([across, across.T] + [np.full((96, 96), v, np.float32) for v in (0.1, 0.2, 0.3, 0.5)])
    visible = np.zeros((96, 96), bool)
    visible[30:60, 20:50] = True
    patch = lay_patch(fields, box, 1, fields[:2], visible)
    sides = [side.stop - side.start for side in patch.spot]
    assert sides == pytest.approx([0.35 * CANVAS * 30 / 96] * 2, abs=2.5)
    nothing = lay_patch(fields, box, 1, fields[:2], np.zeros((96, 96))).spot
    assert nothing == (slice(0, 0), slice(0, 0))
    assert np.allclose(patch.drawn.transpose(1, 2, 0), patch.flow.reshape(patch.height, patch.width, 2) / CANVAS)
    assert (patch.left, patch.top) == (76, 140)
    assert (patch.width, patch.height) == (91, 91)
    flow = patch.flow.reshape(91, 91, 2)
    x = (np.arange(76, 167) + 0.5) / CANVAS
    inside = (x > 0.305) & (x < 0.645)
    expected = (x - 0.3) / 0.35 * CANVAS
    assert np.abs(flow[45, inside, 0] - expected[inside]).max() < 0.2
    assert np.ptp(flow[45, inside, 1]) < 0.01
    texture = patch.texture.reshape(91, 91, 4)
    assert np.allclose(texture[45, 45], [25.5, 51.0, 76.5, 0.5], atol=1e-3)


def test_what_the_networks_are_given():
    pixels = scene(512)
    inputs = portrait_inputs(pixels, KEYPOINTS)
    assert {name: value.shape for name, value in inputs.items()} == {
        "picture": (1, 3, 256, 256), "mouth_box": (1, 4), "eyes_box": (1, 4),
    }  # fmt: skip
    assert all(value.dtype == np.float32 for value in inputs.values())
    small = cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA)
    assert np.array_equal(np.round(inputs["picture"][0].transpose(1, 2, 0) * 255).astype(np.uint8), small)


@given(
    x=st.floats(-0.2, 0.2),
    y=st.floats(-0.2, 0.2),
    zoom=st.floats(0.5, 1.8),
    place=st.sampled_from([mouth_box, eyes_box]),
)
def test_boxes_move_and_grow_with_the_face(x, y, zoom, place):
    still = place(KEYPOINTS)
    box = place((KEYPOINTS - 0.5) * zoom + 0.5 + np.array([x, y], np.float32))
    assert np.allclose(box[2:], still[2:] * zoom, atol=1e-5)
    assert np.allclose(box[:2], (still[:2] - 0.5) * zoom + 0.5 + [x, y], atol=1e-5)


def test_boxes_hold_mouth_and_eyes():
    for box, points in ((mouth_box(KEYPOINTS), KEYPOINTS[3:]), (eyes_box(KEYPOINTS), KEYPOINTS[:2])):
        assert (points > box[:2] + 0.15 * box[2:]).all()
        assert (points < box[:2] + 0.85 * box[2:]).all()


@given(st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=50))
def test_thin_texture_is_made_thinner_and_thick_texture_thicker(opacities):
    opacity = np.sort(np.array(opacities, np.float32))
    sharp = opacity * lips.gain(opacity)
    assert sharp.dtype == np.float32
    assert (np.diff(sharp) >= -1e-6).all()  # what covers more still covers more
    assert sharp.max() <= 1 + 1e-6
    assert (sharp[opacity >= 1] > 1 - 1e-6).all()
    assert (np.abs(sharp[opacity < 0.3]) <= 0.25 * np.abs(opacity[opacity < 0.3]) + 1e-6).all()
    thick = (opacity > 0.65) & (opacity < 1)
    assert (sharp[thick] > opacity[thick]).all()
    torch = pytest.importorskip("torch")
    assert np.allclose(lips.gain(torch.from_numpy(opacity)).numpy(), lips.gain(opacity), atol=1e-6)


@pytest.mark.parametrize(("read", "factor"), [(0.7, 1.0), (0.35, 2.0), (0.1, 3.0), (-0.2, 3.0), (1.0, 0.7), (2.0, 0.6)])
def test_lids_close_further_where_less_is_read_of_a_blink(read, factor):
    own = np.zeros(5, np.float32)
    blink = np.array([1, 2, 3, 4, read], np.float32)
    assert blinking(blink, own) == pytest.approx(factor)
    off = away(blink, own, blinking(blink, own))
    assert np.array_equal(off[:-1], blink[:-1])
    assert off[-1] == pytest.approx(factor * read, rel=1e-5)


@given(gap=st.floats(-0.05, 0.15), more=st.floats(0, 0.05))
def test_lips_that_hardly_part_are_taken_as_closed_and_smiles_as_wider(gap, more):
    def told(gap: float) -> float:
        place = Place(0.5, 0.45, 0.36, 0.0, 0.0, 0.055, 0.7, 0.65, gap)
        sight = np.stack([eye.vector() for eye in EYES])
        return float(resting({"place": place.vector()[None], "sight": sight[None]})[0])

    assert told(gap) == 0 or gap > 0.01
    assert told(gap) <= told(gap + more) + 1e-7
    if gap > 0.08:
        assert told(gap) == pytest.approx(1.4 * gap, rel=1e-3)
