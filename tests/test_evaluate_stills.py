"""The stills that are held out, and what is measured on them; faces are drawn, as in test_evaluate.py."""

import argparse
import json

import cv2
import numpy as np
import pytest
from drawn_faces import GREEN, drawn, landmarks_of_drawing, person_of_drawing, vector_of_drawing

from engine.errors import InputError
from engine.portrait import Portrait, PortraitError
from engine.training import evaluate as evaluation
from engine.training import stills
from engine.training.held_out import HELD_OUT, held_out
from engine.training.stills import background, evaluate_stills, find_stills, stirred, table
from engine.training.tracks import CopyPortrait, Tools

VOICE = np.zeros(9_700, np.float32)


class Speaker(CopyPortrait):
    """Opens and closes its mouth, and moves to the side as far as told (pixels at 512)."""

    def __init__(self, far: int = 0) -> None:
        self.far = far

    def speak(self, portrait, voice, count, seed):
        assert len(voice) == count * 640
        openings = 0.5 - 0.5 * np.cos(np.arange(count))
        return [np.roll(still(opening), round(self.far * (i % 2)), 1) for i, opening in enumerate(openings)]


def still(opening: float = 0.0) -> np.ndarray:
    """A drawn face before stripes, (512, 512, 3)."""
    picture = cv2.resize(drawn(opening), (512, 512), interpolation=cv2.INTER_NEAREST)
    stripes = np.all(picture == 128, -1) & (np.arange(512)[None] % 16 < 8)
    picture[stripes] = 160
    return picture


def landmarks(picture: np.ndarray) -> np.ndarray | None:
    points = landmarks_of_drawing(picture)
    if points is None:
        return None
    points[:468, :2] = 0.5 + 1.5 * (points[:468, :2] - 0.5)  # so that the mouth lies within their hull
    return points


def tools(subject) -> Tools:
    return Tools(subject, landmarks, vector_of_drawing, person_of_drawing)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with files of all the names; what is in them is drawn."""
    for name in HELD_OUT:
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "female_00.jpg").touch()
    monkeypatch.setattr(
        stills, "load_portrait", lambda path, size: Portrait(still(), np.zeros((5, 2), np.float32), str(path))
    )
    return tmp_path


def test_twenty_four_stills_are_held_out_and_none_of_them_ships(assets):
    assert len(HELD_OUT) == 24
    credits = (assets / "CREDITS.md").read_text()
    assert not [name for name in HELD_OUT if f"/{name}.jpg" in credits]
    assert held_out("portraits/female_69.jpg")
    assert held_out("female_69")
    assert not held_out("portraits/female_00.jpg")


def test_stills_are_found_in_the_order_of_the_list(folder):
    assert [path.stem for path in find_stills(folder)] == list(HELD_OUT)
    assert [path.stem for path in find_stills(folder, 2)] == list(HELD_OUT)[:2]
    (folder / "female_24.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of the 24 stills are not here, first female_24\.jpg"):
        find_stills(folder)
    with pytest.raises(InputError, match="no such folder"):
        find_stills(folder / "nowhere")


def test_each_still_gets_its_figures_and_the_sheets_show_it(folder, tmp_path):
    seen = []
    found = find_stills(folder, 7)
    result = evaluate_stills(found, VOICE, lambda: tools(Speaker()), 0, 1, tmp_path / "sheets", seen.append)
    assert seen == [path.stem for path in found]
    assert (result["all"]["measured"], result["all"]["refused"]) == (7, 0)
    for record in result["stills"]:
        assert record["found"] == 1
        assert record["background"] == 0
        assert 0.3 < record["background_share"] < 0.95
        assert record["halo"] == 0
        assert record["mouth"]["low"] < 0.2 < record["mouth"]["high"]
        assert record["identity"]["cosine"] == pytest.approx(1)
        assert record["why"] == HELD_OUT[record["name"]]
    sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert sheets == ["stills_1.jpg", "stills_2.jpg"]
    assert cv2.imread(str(tmp_path / "sheets" / "stills_1.jpg")).shape[1] == 10 * 160
    assert "female_22" in table(result)
    assert json.dumps(result)


def test_a_background_that_moves_is_told(folder):
    result = evaluate_stills(find_stills(folder, 1), VOICE, lambda: tools(Speaker(8)), 0, 1)
    # every second frame the stripes have changed places, and what was hidden by the face has not
    assert 5 < result["all"]["background"]["value"] < 32
    # of every fifth frame, the second and the fourth; a quarter of the stripes is their edges
    assert result["all"]["halo"]["worst"] == pytest.approx(0.375, abs=0.02)
    assert "halo: mean 0.37" in table(result)


def test_the_background_begins_outside_the_grown_hull():
    points = np.zeros((478, 3), np.float32)
    points[:, :2] = 0.5
    points[:4, :2] = [(0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)]
    mask = background(points, 100)
    assert not mask[50, 38]
    assert mask[50, 35]
    assert 1 - mask.mean() == pytest.approx(0.26**2, abs=0.01)
    frame = np.zeros((100, 100, 3), np.uint8)
    moved = frame.copy()
    moved[~mask] = GREEN
    assert stirred(frame, [moved], mask) == 0
    assert stirred(frame, [frame + 3, frame], mask) == 1.5
    assert stirred(frame, [moved], np.zeros_like(mask)) == 0


def test_stills_without_a_face_are_told_not_measured(folder, monkeypatch):
    class Blank(CopyPortrait):
        def speak(self, portrait, voice, count, seed):
            return [np.zeros((512, 512, 3), np.uint8)] * count

    lost = evaluate_stills(find_stills(folder, 1), VOICE, lambda: tools(Blank()), 0, 1)
    assert lost["stills"][0]["found"] == 0
    assert lost["all"]["measured"] == 0
    assert "female_22    0.00" in table(lost)

    def refuse(path, size):
        raise PortraitError("no face found")

    monkeypatch.setattr(stills, "load_portrait", refuse)
    refused = evaluate_stills(find_stills(folder, 1), VOICE, lambda: tools(Speaker()), 0, 1)
    assert refused["all"]["refused"] == 1
    assert "refused: no face found" in table(refused)


def test_the_command_measures_stills(folder, assets, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "make_tools", lambda subject, weights: tools(CopyPortrait()))
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: object())
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    parser.set_defaults(bundled_voice=assets / "voice.flac")
    words = ["--stills", str(folder), "--subject", "copy", "--jobs", "1", "--limit", "1"]
    assert evaluation.run(parser.parse_args(words)) == 0
    out, err = capsys.readouterr()
    assert "1 stills, 1 measured" in out
    assert "1/1" in err
    with pytest.raises(InputError, match="do not go together"):
        evaluation.run(parser.parse_args([*words, "--data", str(folder)]))
