"""What is shown behind a person instead of their own background."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from test_renderer import moved, person, with_background

from engine.renderer.backdrop import Backdrop, BackdropError
from engine.renderer.cpu import CpuRenderer


def test_none_a_colour_and_blur_are_understood():
    own = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert Backdrop.of("") is None
    assert (Backdrop.of("#2024fe").behind(own) == [0x20, 0x24, 0xFE]).all()
    soft = Backdrop.of("blur").behind(own)
    assert soft.shape == own.shape
    assert soft.std() < own.std() / 3
    assert abs(soft.mean() - own.mean()) < 8


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_of_a_picture_the_middle_is_shown(tmp_path, form):
    wide = np.full((90, 160, 3), (200, 30, 30), np.uint8)
    wide[:, 35:125] = (30, 30, 200)
    Image.fromarray(wide).save(tmp_path / f"wall.{form}", quality=95)
    for size in (64, 512):
        shown = Backdrop.of(str(tmp_path / f"wall.{form}")).behind(np.zeros((size, size, 3), np.uint8))
        assert shown.shape == (size, size, 3)
        edge = size // 8  # where the codec mixes colours
        assert np.abs(shown[edge:-edge, edge:-edge].astype(int) - (30, 30, 200)).max() < 12
        assert shown[:, :4].mean((0, 1))[2] > 100


@pytest.mark.parametrize("wanted", ["#12345", "#12345g", "#"])
def test_a_colour_that_is_none_is_refused(wanted):
    with pytest.raises(BackdropError, match="not a colour; give six digits"):
        Backdrop.of(wanted)


def test_files_that_cannot_be_shown_are_refused_in_a_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    for wanted, why in ((tmp_path / "none.jpg", "no such file"), (tmp_path / "a.png", "no JPEG, PNG or WebP"),
                        (tmp_path, "no JPEG, PNG or WebP")):  # fmt: skip
        with pytest.raises(BackdropError, match=why) as refused:
            Backdrop.of(str(wanted))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [256, 512])
def test_the_person_moves_before_it_and_takes_nothing_of_their_own_background_along(size):
    prepared = replace(with_background(1, 512), backdrop=Backdrop.of("#00ff00"))
    own = CpuRenderer(with_background(1, 512), size)
    renderer = CpuRenderer(prepared, size)
    for seed in range(2):
        frame = renderer.render(moved(prepared, seed))
        background = cv2.dilate(person(size), np.ones((size // 8, size // 8))) == 0
        assert (frame[background] == (0, 255, 0)).all()
        inside = cv2.erode(person(size), np.ones((size // 8, size // 8))) == 1
        assert np.array_equal(frame[inside], own.render(moved(prepared, seed))[inside])


def test_a_head_on_a_gpu_has_it_too():
    pytest.importorskip("torch")
    from engine.backend import TorchBackend

    prepared = replace(with_background(1, 256), backdrop=Backdrop.of("#00ff00"))
    backend = TorchBackend("cpu")
    frame = backend.renderer(prepared, 256).render(moved(prepared))
    backend.close()
    away = np.abs(frame.astype(int) - CpuRenderer(prepared, 256).render(moved(prepared)))
    assert away.mean() < 0.25
