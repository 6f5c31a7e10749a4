import hashlib
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
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

ROOT = Path(__file__).parent.parent

# A script's background ignores Ctrl-C, and so would all that is started here: then what it does cannot be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Modules whose tests need neither a clock nor a network nor other processes, and may run beside others.
BESIDE = {
    "test_anchor", "test_architecture", "test_backdrop", "test_backend", "test_blinks", "test_camera_motion",
    "test_checkpoint", "test_cli", "test_closing", "test_colour", "test_decoder", "test_downmix",
    "test_evaluate", "test_evaluate_stills", "test_evaluate_voices", "test_features", "test_file",
    "test_gather", "test_generator", "test_halo", "test_head", "test_lids", "test_log", "test_loopback",
    "test_matting", "test_meeting", "test_memory", "test_metrics", "test_packages", "test_painting",
    "test_parts", "test_portrait", "test_render", "test_renderer", "test_samplers", "test_segmenter",
    "test_sound_formats", "test_speech", "test_stream", "test_timing", "test_torch_batch", "test_training",
    "test_utterances", "test_webrtc_bitrate", "test_weights",
}  # fmt: skip
#: Modules whose tests mostly wait, for clocks, networks and other processes, and do not mind one beside them.
WAITING = {
    "test_connections", "test_devices", "test_faults", "test_live", "test_process", "test_requests",
    "test_server", "test_server_run", "test_sessions", "test_webrtc_broadcast", "test_webrtc_clients",
    "test_webrtc_names", "test_webrtc_offers", "test_webrtc_publish", "test_webrtc_whep", "test_webrtc_whip",
}  # fmt: skip
#: The parts in which `make test` runs all modules, as it names them: `pytest -m`. The third are those left.
PARTS = ("beside", "waiting", "not beside and not waiting")


def part_of(module: str) -> str:
    return PARTS[0] if module in BESIDE else PARTS[1] if module in WAITING else PARTS[2]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The modules of other parts are not even imported, which takes seconds."""
    asked, name = config.option.markexpr, collection_path.name
    skipped = asked in PARTS and name.startswith("test_") and name.endswith(".py")
    return True if skipped and part_of(collection_path.stem) != asked else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        part = part_of(item.path.stem)
        if part != PARTS[2]:
            item.add_marker(part)


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


def all_that_makes_an_export() -> str:
    """A hash of the code and the packages that `untrained` goes through."""
    packages = [f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript", "numpy", "safetensors")]
    told = hashlib.sha256("\n".join([platform.python_version(), *packages]).encode())
    for path in (Path(__file__), *sorted((ROOT / "engine").rglob("*.py"))):
        told.update(f"\n{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return told.hexdigest()[:16]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Untrained:
    """For all tests of whatever runs on weights. The export takes half a minute: it is kept in .cache until the code
    that makes it changes, and copied from there, so that no test can damage it."""
    torch = pytest.importorskip("torch")
    from filelock import FileLock  # torch needs it too

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
    cache, directory = ROOT / ".cache" / "untrained", tmp_path_factory.mktemp("untrained")
    kept = cache / all_that_makes_an_export()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # processes that run side by side need it at once
        if not kept.is_dir():
            for old in (path for path in cache.iterdir() if path.is_dir()):
                shutil.rmtree(old)
            part = cache / "part"  # renamed when whole, however early a run is stopped
            export(renderer, speech, motion, arrays, part, {"renderer_steps": 0, "motion_steps": 0}, "for tests")
            part.rename(kept)
        shutil.copytree(kept, directory, dirs_exist_ok=True)
    for network in (renderer, speech, motion):  # as an export leaves them
        network.load_state_dict({name: value.half().float() for name, value in network.state_dict().items()})
    return Untrained(directory, renderer, speech, motion, arrays)


@pytest.fixture(scope="session", params=["untrained", *WEIGHTS])
def weights(request: pytest.FixtureRequest) -> Path:
    """A weights folder: first a random one, then those that ship."""
    if request.param == "untrained":
        return request.getfixturevalue("untrained").directory
    return WEIGHTS[request.param]
