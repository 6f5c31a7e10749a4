"""The renderer of torch: the pictures of the CPU renderer, for many heads at once. Here on the processor; the same code
runs on a GPU."""

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_renderer import KEYPOINTS, moved, portrait

from engine.backend import TorchBackend
from engine.head import Head, Model
from engine.portrait import load_portrait
from engine.renderer.cpu import CpuRenderer
from engine.speech import read_voice

torch = pytest.importorskip("torch")

from engine.renderer import torch_batch  # noqa: E402

NAMES = ("ada", "bo", "chidi", "dalia")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other at every step are slow where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def backend():
    made = TorchBackend("cpu")
    yield made
    made.close()


@pytest.fixture(scope="module")
def shipped() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def faces(shipped, assets) -> list:
    return [shipped.prepare(load_portrait(assets / "portraits" / f"{name}.jpg", 512)) for name in NAMES]


@pytest.fixture(scope="module")
def latents(shipped, assets, ada_portrait) -> np.ndarray:
    """(n, 24) of ada saying the first seconds of the bundled voice, relative to her own."""
    head = Head(shipped, ada_portrait, size=128)
    voice = read_voice(assets / "voice.flac").mono16k()[: 3 * 16_000]
    performance = head.performance
    return performance.motion.push(performance.features.push(voice)) - shipped.prepare(ada_portrait).latent


def close(frame: np.ndarray, truth: np.ndarray) -> bool:
    """The tolerance that is promised, of 255 levels."""
    away = np.abs(frame.astype(int) - truth)
    return frame.shape == truth.shape and away.mean() < 0.25 and np.percentile(away, 99.9) <= 3


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """How many frames each batch had."""
    sizes, show = [], torch_batch._Company.show

    def counted(company, jobs):
        sizes.append(len(jobs))
        return show(company, jobs)

    monkeypatch.setattr(torch_batch._Company, "show", counted)
    return sizes


class Slow:
    """A seat whose leaving keeps the worker busy until it is told."""

    def __init__(self):
        self.begun, self.told = threading.Event(), threading.Event()

    @property
    def kind(self):
        self.begun.set()
        assert self.told.wait(10)
        raise KeyError("nobody")


def at_once(renderers: list, coefficients: list) -> list:
    """A frame of each, or what it raised, in one batch: all are asked for while the worker is busy."""
    gatherer, slow = renderers[0]._gatherer, Slow()
    gatherer.post(torch_batch._Leave(slow))
    assert slow.begun.wait(10)
    with ThreadPoolExecutor(len(renderers)) as pool:
        calls = [pool.submit(each.render, values) for each, values in zip(renderers, coefficients, strict=True)]
        while gatherer._waiting.qsize() < len(calls):
            time.sleep(0.001)
        slow.told.set()
        return [call.exception(60) or call.result() for call in calls]


@pytest.mark.parametrize("size", [128, 300, 512])
def test_heads_with_portraits_of_their_own_in_one_batch_are_what_the_cpu_draws(
    backend, shipped, faces, latents, batches, size
):
    renderers = [backend.renderer(face, size) for face in faces]
    truths = [CpuRenderer(face, size) for face in faces]
    still = 0
    for number in range(0, len(latents), 16):
        # each at another moment
        shown = [np.roll(latents, 7 * n, 0)[number] + face.latent for n, face in enumerate(faces)]
        coefficients = [shipped.coefficients(latent) for latent in shown]
        frames = at_once(renderers, coefficients)
        for frame, truth, values, face in zip(frames, truths, coefficients, faces, strict=True):
            expected = truth.render(values)
            assert frame.dtype == np.uint8 and frame.flags.c_contiguous
            assert close(frame, expected)
            still += np.abs(expected.astype(int) - truth.render(face.coefficients)).mean()
    assert still > 4  # something moved
    assert set(batches) == {len(faces)}


def test_at_its_own_motion_the_frame_is_the_portrait(backend, faces):
    for face in faces:
        frame = backend.renderer(face, 512).render(face.coefficients).astype(int)
        assert np.abs(frame - CpuRenderer(face, 512).render(face.coefficients)).max() <= 1  # soft edges round apart
        whole = face.matte == 1
        assert whole.mean() > 0.2
        assert np.array_equal(frame[whole], face.pixels[whole])


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_faces_anywhere_and_of_any_size_share_a_batch(backend, batches, scale):
    """Patches that the canvas cuts off, patches of different sizes, motion past the border."""
    places = [(KEYPOINTS - 0.5) * zoom + shift for zoom, shift in ((1, 0.5), (0.4, 0.2), (2.5, 0.6), (1, 0.95), (1, 2))]
    heads = [portrait(n, 256, place.astype(np.float32)) for n, place in enumerate(places)]
    renderers = [backend.renderer(head, 256) for head in heads]
    coefficients = [moved(head, n, scale) for n, head in enumerate(heads)]
    for frame, head, values in zip(at_once(renderers, coefficients), heads, coefficients, strict=True):
        truth = CpuRenderer(head, 256).render(values)
        if scale == 1:
            assert close(frame, truth)
        else:  # edges and opacity are so steep that a 32nd of a pixel, OpenCV's own step, shows
            assert np.abs(frame.astype(int) - truth).mean() < 1
    assert batches == [len(heads)]


def test_heads_come_and_go_and_nobody_else_sees_it(backend, shipped, faces, latents):
    """More and more, with places that are used again; each is drawn as before."""
    values = [shipped.coefficients(latents[20] + face.latent) for face in faces]
    truths = [CpuRenderer(face, 128).render(each) for face, each in zip(faces, values, strict=True)]
    here: list[tuple[int, torch_batch.TorchRenderer]] = []
    rng = np.random.default_rng(0)
    for step in range(12):
        for _ in range(2):
            which = int(rng.integers(len(faces)))
            here.append((which, backend.renderer(faces[which], 128)))
        if step % 3 == 2:
            del here[:: 2 if step % 2 else 3]
            gc.collect()
        frames = at_once([each for _, each in here], [values[which] for which, _ in here])
        for (which, _), frame in zip(here, frames, strict=True):
            assert close(frame, truths[which])
    (room,) = stage(backend)._companies.values()
    assert len(room.places) == len(here)
    assert len({each._seat.place for _, each in here}) == len(here)
    assert room._store.side**2 < 24  # places of those who left were used again


def stage(backend: TorchBackend) -> torch_batch._Stage:
    """What the worker works on, once all that was asked for is done."""
    gatherer = backend._renderers._gatherer
    gc.collect()
    with pytest.raises(AttributeError):
        gatherer.call(torch_batch._Leave(None))
    return gatherer._thread._args[1].__self__


def test_the_last_to_leave_frees_the_device(backend, faces):
    renderers = [backend.renderer(face, size) for face in faces[:2] for size in (128, 256)]
    assert len(stage(backend)._companies) == 2
    del renderers[1::2]
    assert [size for size, _ in stage(backend)._companies] == [128]
    renderers.clear()
    assert stage(backend)._companies == {}
    whole = faces[0].matte == 1
    frame = backend.renderer(faces[0], 512).render(faces[0].coefficients)
    assert np.array_equal(frame[whole], faces[0].pixels[whole])


def test_sizes_are_drawn_side_by_side(backend, shipped, faces, latents, batches):
    sizes = (128, 256, 128, 200)
    values = shipped.coefficients(latents[30] + faces[1].latent)
    frames = at_once([backend.renderer(faces[1], size) for size in sizes], [values] * 4)
    for size, frame in zip(sizes, frames, strict=True):
        assert close(frame, CpuRenderer(faces[1], size).render(values))
    assert sorted(batches) == [1, 1, 2]


def test_one_that_fails_takes_no_other_down(backend, shipped, faces, latents, monkeypatch):
    renderers = [backend.renderer(face, 128) for face in faces]
    values = [shipped.coefficients(latents[10] + face.latent) for face in faces]
    expected = at_once(renderers, values)
    with pytest.raises(ValueError, match="coefficients"):
        renderers[0].render(values[0][:-1])
    # numbers that mean nothing spoil the frame that was asked for, and no other of its batch
    broken = [*values[:3], np.full_like(values[3], np.nan)]
    for frame, truth in zip(at_once(renderers, broken)[:3], expected, strict=False):
        assert np.array_equal(frame, truth)

    order = torch_batch._Company._order

    def fails(company, jobs):
        if any(np.isnan(job.weights).any() for job in jobs):
            raise RuntimeError("out of memory")
        return order(company, jobs)

    monkeypatch.setattr(torch_batch._Company, "_order", fails)
    *fine, bad = at_once(renderers, broken)
    assert isinstance(bad, RuntimeError)
    assert all(np.array_equal(*pair) for pair in zip(fine, expected, strict=False))
    # one that cannot join is told, and is not there
    with pytest.raises(RuntimeError):
        backend.renderer(replace(faces[0], head=faces[0].head[:3]), 128)
    assert np.array_equal(renderers[0].render(values[0]), expected[0])
    assert len(next(iter(stage(backend)._companies.values())).places) == 4


def test_frames_are_the_callers_to_keep(backend, shipped, faces, latents):
    renderer = backend.renderer(faces[2], 128)
    values = [shipped.coefficients(latent + faces[2].latent) for latent in latents[::20]]
    kept = [renderer.render(each) for each in values]
    copies = [frame.copy() for frame in kept]
    for each, frame, copy in zip(values, kept, copies, strict=True):
        assert np.array_equal(renderer.render(each), frame) and np.array_equal(frame, copy)
        assert frame.flags.owndata and frame.flags.writeable


def test_after_the_end_frames_are_refused(faces):
    backend = TorchBackend("cpu")
    renderer = backend.renderer(faces[0], 128)
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.render(faces[0].coefficients)
    TorchBackend("cpu").close()  # one that was never used


def test_the_process_ends_while_heads_are_there():
    """With renderers that nobody closed, one of them at work in a daemon thread. It ends as our program does: Python's
    own end aborts where native code comes back to a daemon thread (cpython issue 87135)."""
    code = """
import sys, threading, numpy as np
sys.path.insert(0, "tests")
from test_renderer import portrait
from engine.backend import TorchBackend
from plugin.program import leave
backend = TorchBackend("cpu")
face = portrait()
renderers = [backend.renderer(face, 128) for _ in range(2)]
def loop():
    while True:
        renderers[1].render(face.coefficients)
threading.Thread(target=loop, daemon=True).start()
print(renderers[0].render(face.coefficients).shape)
leave(0)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "(128, 128, 3)\n"), done.stderr


def test_a_model_on_it_moves_and_shows_the_same(backend, shipped, ada_portrait, assets):
    """Several heads at once, each half a second of voice: motion within 1e-4, pictures within the tolerance."""
    model = Model.load(backend=backend)
    voice = read_voice(assets / "voice.flac").mono16k()
    voices = [voice[n * 16_000 :][:8_000] for n in range(3)]

    def speak(each: Model, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        head = Head(each, ada_portrait, fps=25, size=128, seed=seed)
        motion = head.performance.motion
        made, push = [], motion.push
        motion.push = lambda features: made.append(push(features)) or made[-1]
        frames = head.push(voices[seed]) + head.finish()
        return [frame.image for frame in frames], np.concatenate(made)

    with ThreadPoolExecutor(3) as pool:
        spoken = list(pool.map(lambda seed: speak(model, seed), range(3)))
    for seed, (frames, motion) in enumerate(spoken):
        expected, truth = speak(shipped, seed)
        assert np.abs(motion - truth).max() < 1e-4
        assert len(frames) == len(expected) == 13
        assert all(close(*pair) for pair in zip(frames, expected, strict=True))


def test_evaluations_of_motion_run_as_one(backend, shipped):
    model = Model.load(backend=backend)
    rng, window, shape = np.random.default_rng(0), shipped.window, shipped.config["motion"]

    def inputs(rows: int) -> dict[str, np.ndarray]:
        sizes = {"latents": (window, shape["latent"]), "noise": (window,), "past": (window,), "present": (window,),
                 "speech": (window, shape["speech"]), "hears": (), "statistics": (2 * shape["latent"],),
                 "knows": ()}  # fmt: skip
        return {name: rng.uniform(0, 1, (rows, *size)).astype(np.float32) for name, size in sizes.items()}

    jobs = [inputs(rows) for rows in (2, 1, 2, 2)]
    truths = [shipped.velocity(**job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, truth in zip(pool.map(lambda job: model.velocity(**job), jobs), truths, strict=True):
                assert found.shape == truth.shape
                assert np.abs(found - truth).max() < 1e-4
