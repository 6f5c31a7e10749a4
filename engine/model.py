"""The trained model as it ships: loading with hash checks, and its networks on a backend.

One `Model` serves any number of heads; its networks are thread-safe and hold the only copy of the weights.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from engine.anchor import anchored
from engine.backend import Backend, CpuBackend, Renderer, choose
from engine.errors import InputError
from engine.gather import Network
from engine.portrait import Portrait
from engine.renderer import closing, matting, segmenter
from engine.renderer.backdrop import Backdrop
from engine.renderer.boxes import mouth_box
from engine.renderer.cpu import (
    GAUGES,
    FieldCounts,
    PreparedPortrait,
    away,
    blinking,
    portrait_inputs,
    prepare,
    resting,
)
from engine.renderer.inside import INSIDE
from engine.renderer.outline import Outline

#: The sets of weights that ship, by the material they learned from: see MODEL_CARD.md.
WEIGHTS = {name: Path(__file__).parent / "weights" / name for name in ("research", "clean")}
DEFAULT_WEIGHTS = "research"
#: What finds the person in a portrait, the same for every set: see MODEL_CARD.md.
SEGMENTER = Path(__file__).parent / "weights" / "segmenter"
VERSION = 9
FILES = ("weights.safetensors", "encoder.onnx", "portrait.onnx", "coefficients.onnx", "speech.onnx", "motion.onnx")
#: What the portrait network makes, in this order; see engine/renderer/network.py, Fields.
FIELDS = ("head", "face", "mouth", "eyes", "matte", "share", "place", "sight", "lips")
#: What config.json says of the fields, beside the latent's length.
COUNTS = tuple(each.name for each in fields(FieldCounts))
RUNTIME_ARRAYS = (
    "mean_from_portrait", "deviation", "centre", "total", "within", "swing", "lips", "lids", "head", "degrees", "blink",
    "blinks", "speaking",
)  # fmt: skip


class WeightsError(InputError):
    """The weights folder is missing, incomplete or damaged."""


def find_weights(name: str) -> Path:
    """The folder of a set that ships, or the folder itself that is named."""
    return WEIGHTS.get(name) or Path(name)


def check_hashes(directory: Path) -> dict:
    """The folder's config.json, after every file named there was found whole. Raises WeightsError."""
    try:
        config = json.loads((directory / "config.json").read_text())
        expected = {name: config["sha256"][name] for name in FILES}
        version, counts, window = config["version"], config["renderer"], config["motion"]["window"]
        if set(counts) != {"latent", *COUNTS} or not all(type(n) is int and n > 0 for n in (window, *counts.values())):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(
            f"{directory}: no config.json; give one of {', '.join(WEIGHTS)}, or a folder made by `ifmdm train export`"
        ) from None
    except (OSError, ValueError, LookupError, TypeError):
        raise WeightsError(
            f"{directory / 'config.json'}: cannot be read; export or install the weights again"
        ) from None
    if version != VERSION:
        raise WeightsError(f"{directory}: weights of version {version}, not {VERSION}; install those of this ifmdm")
    _check_digests(directory, expected)
    return config


def check_segmenter(directory: Path) -> None:
    """Raises WeightsError where a segmenter's folder is not whole, or not of this ifmdm."""
    try:
        config = json.loads((directory / "config.json").read_text())
        expected = {name: config["sha256"][name] for name in segmenter.FILES}
        version = config["version"]
    except (OSError, ValueError, LookupError, TypeError):
        raise WeightsError(f"{directory / 'config.json'}: cannot be read; install ifmdm again") from None
    if version != segmenter.VERSION:
        raise WeightsError(f"{directory}: a segmenter of version {version}, not {segmenter.VERSION}; install that of "
                           "this ifmdm")  # fmt: skip
    _check_digests(directory, expected)


def _check_digests(directory: Path, expected: dict[str, str]) -> None:
    """Raises WeightsError where a file of a folder has another SHA-256 than the one it should have."""
    for name, digest in expected.items():
        path = directory / name
        try:
            if not path.is_file():
                raise WeightsError(f"{path}: missing; export or install the weights again")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror}); check access to it") from error
        if found != digest:
            raise WeightsError(f"{path}: damaged (its SHA-256 is not the one in config.json); install it again")


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """What the runtime knows of latents. Raises WeightsError if it is not all there."""
    try:
        with safe_open(file, "numpy") as arrays:
            return {name: arrays.get_tensor(f"runtime.{name}") for name in RUNTIME_ARRAYS}
    except (SafetensorError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{file}: not as this ifmdm needs it ({reason}); export or install it again") from error


@dataclass(frozen=True)
class Model:
    """Networks and what the runtime knows of their latents. arrays: see training/export.py, runtime_arrays; backend:
    what runs the networks and draws."""

    directory: Path
    config: dict
    arrays: dict[str, np.ndarray]
    backend: Backend = field(default_factory=CpuBackend)
    _networks: dict[str, Network] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def load(cls, directory: Path | None = None, backend: str | Backend = "cpu") -> "Model":
        """Read a weights folder (by default that of the set that ships as such). backend: "cpu", "cuda", "auto" or one
        that is there already, see engine/backend.py. Raises WeightsError, BackendError."""
        directory = directory or find_weights(DEFAULT_WEIGHTS)
        config = check_hashes(directory)
        check_segmenter(SEGMENTER)
        arrays = _read_arrays(directory / "weights.safetensors")
        if isinstance(backend, str):
            backend = choose(backend, directory / "coefficients.onnx")
        return cls(directory, config, arrays, backend)

    @property
    def licence(self) -> str:
        """What may be done with these weights, in one line."""
        return self.config.get("licence", "not stated")

    def _network(
        self, name: str, shared: bool = False, backend: Backend | None = None, directory: Path | None = None
    ) -> Network:
        """One for all threads, loaded when it is first asked for; what others ask for meanwhile waits."""
        with self._lock:
            if name not in self._networks:
                path = (directory or self.directory) / name
                self._networks[name] = (backend or self.backend).network(path, shared)
            return self._networks[name]

    @property
    def _encoder(self) -> Network:
        return self._network("encoder.onnx")

    @property
    def _portrait(self) -> Network:
        return self._network("portrait.onnx")

    @property
    def _segmenter(self) -> Network:
        return self._network(segmenter.GRAPH, directory=SEGMENTER)

    @property
    def _coefficients(self) -> Network:
        # on the processor, always: it takes 10 microseconds there, and a way to the device and back takes more
        return self._network("coefficients.onnx", backend=CpuBackend())

    @property
    def _speech(self) -> Network:
        return self._network("speech.onnx", shared=True)

    @property
    def _motion(self) -> Network:
        return self._network("motion.onnx", shared=True)

    @property
    def window(self) -> int:
        return self.config["motion"]["window"]

    def coefficients(self, latent: np.ndarray) -> np.ndarray:
        """h: latent (D,) -> coefficients (C,) of the fields, and the gauges."""
        return self._coefficients({"latents": latent[None].astype(np.float32)})[0][0]

    def encode(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Latent (D,) of a frame, given as portrait_inputs gives it."""
        return self._encoder(inputs)[0][0]

    def listen(self, features: np.ndarray) -> np.ndarray:
        """What a window's speech features (1, 2 W, 64) say: (1, W, S)."""
        return self._speech({"features": features})[0]

    def velocity(self, **inputs: np.ndarray) -> np.ndarray:
        """One evaluation of the motion transformer; see engine/motion/generator.py, Denoiser."""
        return self._motion(inputs)[0]

    def gauges(self, latent: np.ndarray) -> np.ndarray:
        """Latent (D,) -> how far lips are apart, in sides of the mouth's box, and how much of their opening eyes have
        closed (2,)."""
        return self.coefficients(latent)[-GAUGES:]

    def closed(self, portrait: PreparedPortrait, latent: np.ndarray) -> float:
        """How far a portrait's eyes are read to close: 0 as in the picture, about 0.7 in a blink."""
        return float(away(self.coefficients(latent), portrait.coefficients, portrait.blinking)[-1])

    @property
    def ways(self) -> tuple[np.ndarray, ...]:
        """What moves lips, and lids, and nothing else: directions (n, D) each, as long as motion deviates."""
        return tuple(self.arrays[name] * self.arrays["within"] for name in ("lips", "lids"))

    def prepare(self, portrait: Portrait, backdrop: Backdrop | None = None) -> PreparedPortrait:
        """Run the portrait network, once a portrait, a fraction of a second; where it smiles with open lips, they are
        closed first (see engine/renderer/closing.py), and it is run again.
        backdrop: shown behind the person, instead of their own background."""
        pixels, keypoints, own_teeth = portrait.pixels, portrait.keypoints, None
        fields, inputs = self._fields(pixels, keypoints)
        found = Outline(*fields["lips"][0].tolist())
        if closing.smiles(found):
            box = mouth_box(keypoints)
            own_teeth = closing.teeth(pixels, box, found, INSIDE)
            pixels = closing.close(pixels, box, found)
            fields, inputs = self._fields(pixels, keypoints)
        read = self.encode(inputs)
        latent = anchored(read, self.gauges, resting(fields), self.ways)
        counts = FieldCounts(**{k: v for k, v in self.config["renderer"].items() if k != "latent"})
        own = self.coefficients(latent)
        blinks = blinking(self.coefficients(latent + self.arrays["blink"]), own)
        matte = matting.matte(portrait.pixels, segmenter.segment(self._segmenter, portrait.pixels), keypoints)
        made = prepare(pixels, matte, keypoints, counts, latent, own, fields, read - latent, blinks, own_teeth)
        return replace(made, backdrop=backdrop)

    def _fields(self, pixels: np.ndarray, keypoints: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the portrait network makes of a picture, and what it was given."""
        inputs = portrait_inputs(pixels, keypoints)
        return dict(zip(FIELDS, self._portrait(inputs), strict=True)), inputs

    def renderer(self, prepared: PreparedPortrait, size: int) -> Renderer:
        """What draws a prepared portrait at a size."""
        return self.backend.renderer(prepared, size)
