import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import settings

import plugin
from engine.model import WEIGHTS
from engine.portrait import Portrait, load_portrait

# Decoding and face detection take as long as the machine is busy; that is no failure.
settings.register_profile("ifmdm", deadline=None, print_blob=True)
settings.load_profile("ifmdm")

# A script's background ignores Ctrl-C, and so would all that is started here: then what it does cannot be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Modules whose tests need neither a clock nor a network nor other processes, and may run beside others.
BESIDE = {
    "test_anchor", "test_backend", "test_blinks", "test_camera_motion", "test_checkpoint", "test_closing",
    "test_evaluate", "test_evaluate_stills", "test_evaluate_voices", "test_features", "test_gather", "test_generator",
    "test_head", "test_lids", "test_metrics", "test_painting", "test_portrait", "test_render", "test_renderer",
    "test_samplers", "test_speech", "test_stream", "test_timing", "test_torch_batch", "test_training", "test_weights",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in BESIDE:
            item.add_marker("beside")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in, without settings of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("IFMDM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def users_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to run in with settings of its own, in its file and in the environment, with which nothing is to be
    measured: no server to measure at, a recording of the user's, weights that are not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(
        "[server]\nenabled = false\ntoken = 'correct-horse'\n[engine]\nweights = 'none'\n[live]\nrecord = 'mine.mp4'\n"
    )
    (tmp_path / "mine.mp4").write_text("precious")
    monkeypatch.setenv("IFMDM_VIDEO__FPS", "3")
    monkeypatch.setenv("IFMDM_LIVE__OUTPUTS", "camera")
    yield
    assert (tmp_path / "mine.mp4").read_text() == "precious"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the bundled portraits and voice."""
    return Path(plugin.__file__).parent / "assets"


@pytest.fixture(scope="session")
def ada(assets: Path) -> np.ndarray:
    """The pixels of a bundled portrait, (512, 512, 3) uint8 RGB."""
    return cv2.cvtColor(cv2.imread(str(assets / "portraits" / "ada.jpg")), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="session")
def ada_portrait(assets: Path) -> Portrait:
    return load_portrait(assets / "portraits" / "ada.jpg")


@dataclass(frozen=True)
class Untrained:
    """A weights folder of small networks that learned nothing, and those networks in torch as exported."""

    directory: Path
    renderer: Any
    speech: Any
    motion: Any
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Untrained:
    """Exported once (it takes seconds), for all tests of whatever runs on weights."""
    torch = pytest.importorskip("torch")
    from engine.motion.network import MotionShape, MotionTransformer, SpeechEncoder
    from engine.renderer.network import Renderer, RendererShape
    from engine.training.export import export

    latent = 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = RendererShape(latent, head=3, face=3, mouth_flow=2, mouth_texture=3, eyes_flow=2, eyes_texture=2)
        renderer = Renderer(shape).eval()
        # a random one sees smiles, which are closed before anything else is made of a portrait
        torch.nn.init.zeros_(renderer.portrait.lips.body.head.weight)
        renderer.portrait.lips.body.head.bias.data = torch.tensor([0.0, 0, -2, 0, 0, 0, 0, 0, 0, 0])
        speech = SpeechEncoder(16).eval()
        motion = MotionTransformer(MotionShape(latent, window=16, width=24, speech=16, depth=1, heads=2)).eval()
        for parameter in motion.parameters():
            if not parameter.any():  # layers that begin at zero would hide what comes before them
                torch.nn.init.normal_(parameter, 0, 0.1)
    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(0.1, 0.5, latent) for name in ("deviation", "total", "within", "swing")}
    arrays |= {"centre": rng.normal(0, 0.2, latent), "degrees": rng.normal(0, 0.02, (3, latent))}
    arrays |= {"blink": rng.normal(0, 0.2, latent), "blinks": np.array([1.5]), "speaking": np.array([0.02])}
    arrays |= {"lips": np.eye(2, latent), "lids": np.eye(2, latent, 2), "head": np.eye(2, latent, 4)}
    arrays["mean_from_portrait"] = np.concatenate([0.9 * np.eye(latent), rng.normal(0, 0.05, (1, latent))])
    arrays = {f"runtime.{name}": value.astype(np.float32) for name, value in arrays.items()}
    directory = tmp_path_factory.mktemp("untrained")
    export(renderer, speech, motion, arrays, directory, {"renderer_steps": 0, "motion_steps": 0}, "for tests")
    return Untrained(directory, renderer, speech, motion, arrays)


@pytest.fixture(scope="session", params=["untrained", *WEIGHTS])
def weights(request: pytest.FixtureRequest) -> Path:
    """A weights folder: first a random one, then those that ship."""
    if request.param == "untrained":
        return request.getfixturevalue("untrained").directory
    return WEIGHTS[request.param]
