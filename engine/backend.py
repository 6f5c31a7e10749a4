"""Backends: what runs the networks and makes the pictures, behind one small interface.

- `CpuBackend`: ONNX Runtime on the processor, and the renderer of NumPy and OpenCV (engine/renderer/cpu.py). Each head
  computes in the thread that calls it, and OpenCV in more, unless it is told cv2.setNumThreads(1).
- `TorchBackend`: ONNX Runtime's CUDA provider, and the renderer of torch (engine/renderer/torch_batch.py). What heads
  of a process ask for at the same time is done at once. It runs on the processor too, for tests.

`choose` takes one by its name. torch, which takes seconds to import, is imported only if "cuda" is asked for, or if
"auto" finds an NVIDIA driver and a torch that was built for it.
"""

import contextlib
import ctypes
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from engine.errors import InputError
from engine.gather import GatheredNetwork, Network
from engine.renderer.cpu import CpuRenderer, PreparedPortrait

#: What may be asked for.
NAMES = ("auto", "cpu", "cuda")
CUDA = "CUDAExecutionProvider"
#: Float32 stays float32, since a stream of motion is compared with the processor's; convolutions are not tried out anew
#: for every size of a batch; memory is left to the renderer.
CUDA_OPTIONS = {
    "device_id": "0",
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
#: Calls of a network that run as one, at most.
MOST_CALLS = 64


class BackendError(InputError):
    """A backend cannot be used here. One line: why, what to install."""


class Renderer(Protocol):
    """Draws one prepared portrait at one size. For one thread at a time."""

    def render(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (C,) of the motion to show -> frame (size, size, 3) uint8 RGB, the caller's to keep."""
        ...


class Backend(Protocol):
    """name: "cpu" or "cuda". str() is for people."""

    name: str

    def network(self, path: Path, shared: bool = False) -> Network:
        """What runs an ONNX file, on the processor in one thread. shared: all heads call it all the time, so their
        calls may run as one batch, if the file's batch axis is open."""
        ...

    def renderer(self, portrait: PreparedPortrait, size: int) -> Renderer: ...

    def close(self) -> None:
        """Let go of what the backend holds. No call may follow."""
        ...


def make_session(path: Path, cuda: bool = False) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime, of one thread on the processor, whose cores belong to encoders and other heads, too.
    Raises BackendError if CUDA was asked for and is not used: ONNX Runtime itself would go on without it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about its own optimiser
    if not cuda:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    onnxruntime.set_default_logger_severity(4)  # it tells at length why it goes on without; we say it in a line
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[(CUDA, CUDA_OPTIONS), "CPUExecutionProvider"])
    finally:
        onnxruntime.set_default_logger_severity(2)
    if CUDA not in session.get_providers():
        built = getattr(onnxruntime, "cuda_version", "") or "its version of CUDA"
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load CUDA {built} and cuDNN 9: "
            "install a PyTorch of the same CUDA (it brings both), or both themselves"
        )
    return session


class CpuBackend:
    """See the module. note: why it is not CUDA, on a machine that has an NVIDIA driver."""

    name = "cpu"

    def __init__(self, note: str = ""):
        self.note = note

    def __str__(self) -> str:
        return f"cpu; not cuda, since {self.note}" if self.note else "cpu"

    def network(self, path: Path, shared: bool = False) -> Network:
        session = make_session(path)
        return lambda inputs: session.run(None, inputs)

    def renderer(self, portrait: PreparedPortrait, size: int) -> CpuRenderer:
        return CpuRenderer(portrait, size)

    def close(self) -> None:
        pass


class TorchBackend:
    """See the module. device: "cuda", or "cpu" for tests of the same code."""

    def __init__(self, device: str = "cuda"):
        """Raises BackendError if there is no such device, and ImportError without torch."""
        from engine.renderer import torch_batch

        self.name = device
        try:
            self._device_name = torch_batch.try_device(device)
        except RuntimeError as error:  # a line, whatever torch tells
            raise BackendError(f"PyTorch cannot use {device}: {str(error).strip().splitlines()[0]}") from error
        self._renderers = torch_batch.TorchRenderers(device)
        self._networks: list[GatheredNetwork] = []

    def __str__(self) -> str:
        return f"{self.name}, {self._device_name}"

    def network(self, path: Path, shared: bool = False) -> Network:
        session = make_session(path, cuda=self.name == "cuda")

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return session.run(None, inputs)

        if not shared:
            return run
        batched = not isinstance(session.get_inputs()[0].shape[0], int)  # the axis has a name where it is open
        self._networks.append(GatheredNetwork(run, path.stem, MOST_CALLS, batched))
        return self._networks[-1]

    def renderer(self, portrait: PreparedPortrait, size: int) -> Renderer:
        return self._renderers.make(portrait, size)

    def close(self) -> None:
        for each in (self._renderers, *self._networks):
            each.close()


def driver_here() -> bool:
    """Whether an NVIDIA driver is installed: its library is looked for and nothing is asked of it, in a
    millisecond."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def torch_with_cuda() -> bool:
    """Whether a torch that was built for CUDA is installed, without importing it."""
    found = importlib.util.find_spec("torch")
    return bool(found and found.origin and any((Path(found.origin).parent / "lib").glob("*torch_cuda*")))


def _try(network: Network, session: Any) -> None:
    """Run a network once, on zeros."""
    sizes = {each.name: [n if isinstance(n, int) else 1 for n in each.shape] for each in session.get_inputs()}
    network({name: np.zeros(shape, np.float32) for name, shape in sizes.items()})


def use_cuda(probe: Path) -> TorchBackend:
    """The GPU, after torch and ONNX Runtime both have computed something there. probe: an ONNX file to try. Raises
    BackendError."""
    if CUDA not in onnxruntime.get_available_providers():
        raise BackendError("this ONNX Runtime has no CUDA: pip install onnxruntime-gpu (Linux and Windows on x86-64)")
    if not driver_here():
        raise BackendError("there is no NVIDIA driver on this machine: install NVIDIA's")
    try:
        backend = TorchBackend("cuda")
    except (ImportError, OSError) as error:
        raise BackendError(f"PyTorch cannot be imported ({error}): pip install -c constraints.txt '.[gpu]'") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
        onnxruntime.preload_dlls()
    try:
        session = make_session(probe, cuda=True)
        _try(lambda inputs: session.run(None, inputs), session)
    except BackendError:
        raise
    except Exception as error:  # of ONNX Runtime, which has many kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"ONNX Runtime cannot compute on the GPU: {line}") from error
    return backend


def choose(name: str, probe: Path) -> Backend:
    """The backend of this name; "auto" is "cuda" where that works, else "cpu". probe: see use_cuda. Raises
    BackendError for "cuda" where it does not work."""
    if name == "auto" and not (CUDA in onnxruntime.get_available_providers() and driver_here()):
        return CpuBackend()
    if name == "auto" and not torch_with_cuda():
        return CpuBackend("no PyTorch that is built for CUDA is installed: pip install -c constraints.txt '.[gpu]'")
    if name == "cpu":
        return CpuBackend()
    try:
        return use_cuda(probe)
    except BackendError as error:
        if name == "auto":
            return CpuBackend(str(error))
        raise BackendError(f'backend "cuda": {error}; or take "cpu"') from error
