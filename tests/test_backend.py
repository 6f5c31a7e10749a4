"""Which backend is taken, and what is told where one cannot be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import engine.backend
from engine.backend import CUDA, BackendError, CpuBackend, choose, make_session
from engine.model import WEIGHTS, Model
from engine.renderer.cpu import CpuRenderer
from plugin import cli, doctor
from plugin.settings import load_settings

PROBE = WEIGHTS["research"] / "coefficients.onnx"


def cuda_works() -> bool:
    return isinstance(choose("auto", PROBE), engine.backend.TorchBackend)


no_gpu = pytest.mark.skipif(cuda_works(), reason="this machine has a GPU that works")


@pytest.fixture
def driver(monkeypatch):
    """As on a machine with an NVIDIA driver, whatever it has."""
    monkeypatch.setattr(engine.backend, "driver_here", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])


def refusal(name: str = "cuda") -> str:
    with pytest.raises(BackendError) as told:
        choose(name, PROBE)
    line = str(told.value)
    assert "\n" not in line and line.endswith('or take "cpu"')
    return line


def test_the_processor_is_always_there(shipped_face):
    model, face = shipped_face
    assert model.backend.name == "cpu" and str(model.backend) == "cpu"
    assert isinstance(model.renderer(face, 128), CpuRenderer)
    model.backend.close()


@pytest.fixture
def shipped_face(ada_portrait):
    model = Model.load(backend="cpu")
    return model, model.prepare(ada_portrait)


def test_without_a_driver_auto_is_the_processor_and_torch_is_left_alone(monkeypatch):
    monkeypatch.setattr(engine.backend, "driver_here", lambda: False)
    monkeypatch.setattr(engine.backend, "use_cuda", lambda probe: pytest.fail("tried"))
    backend = choose("auto", PROBE)
    assert isinstance(backend, CpuBackend) and backend.note == ""


@no_gpu
def test_auto_imports_no_torch_here():
    code = """
import sys
from engine.model import Model
print(Model.load(backend="auto").backend.name, "torch" in sys.modules)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "cpu False\n", done.stderr


def test_with_a_driver_but_no_torch_for_it_auto_is_the_processor_and_says_why(driver, monkeypatch):
    monkeypatch.setattr(engine.backend, "torch_with_cuda", lambda: False)
    monkeypatch.setattr(engine.backend, "use_cuda", lambda probe: pytest.fail("tried"))
    backend = choose("auto", PROBE)
    assert isinstance(backend, CpuBackend)
    assert "pip install -c constraints.txt '.[gpu]'" in str(backend)
    monkeypatch.setattr("engine.model.choose", lambda *_: backend)
    state, told = doctor.check_backend(load_settings({}))
    assert state == doctor.POOR and ".[gpu]" in told


def test_a_torch_is_looked_at_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    package = tmp_path / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    assert not engine.backend.torch_with_cuda()
    (package / "lib" / "libtorch_cuda.so").touch()
    assert engine.backend.torch_with_cuda()


def test_cuda_without_its_provider_driver_or_torch_is_refused_in_a_line(driver, monkeypatch):
    def fail(device):
        raise ModuleNotFoundError("No module named 'torch'")

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "TorchBackend", fail)
        assert "pip install -c constraints.txt '.[gpu]'" in refusal()
        assert ".[gpu]" in choose("auto", PROBE).note or not engine.backend.torch_with_cuda()
    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "driver_here", lambda: False)
        assert "no NVIDIA driver" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        assert "pip install onnxruntime-gpu" in refusal()


@no_gpu
def test_a_torch_that_finds_no_gpu_is_told(driver):
    pytest.importorskip("torch")
    assert "PyTorch cannot use cuda" in refusal()


@no_gpu
def test_a_provider_that_does_not_load_is_no_cuda(driver, monkeypatch, capfd):
    """ONNX Runtime would go on with the processor, and tell so at length."""
    pytest.importorskip("torch")
    real = engine.backend.TorchBackend
    monkeypatch.setattr(engine.backend, "TorchBackend", lambda device: real("cpu"))
    assert "ONNX Runtime" in refusal()
    monkeypatch.setattr(engine.backend, "torch_with_cuda", lambda: True)
    backend = choose("auto", PROBE)
    assert isinstance(backend, CpuBackend) and "ONNX Runtime" in backend.note
    assert capfd.readouterr() == ("", "")
    with pytest.raises(BackendError):
        make_session(PROBE, cuda=True)


def test_where_all_works_cuda_is_taken(driver, monkeypatch):
    """The way through, with the processor in the place of the GPU."""
    pytest.importorskip("torch")
    real, session = engine.backend.TorchBackend, make_session
    monkeypatch.setattr(engine.backend, "TorchBackend", lambda device: real("cpu"))
    monkeypatch.setattr(engine.backend, "make_session", lambda path, cuda=False: session(path))
    monkeypatch.setattr(engine.backend, "torch_with_cuda", lambda: True)
    for name in ("auto", "cuda"):
        model = Model.load(backend=name)
        assert np.isfinite(model.coefficients(np.zeros(24, np.float32))).all()
        model.backend.close()


@no_gpu
@pytest.mark.parametrize("words", [["bench", "--backend", "cuda"], ["render", "--output", "x.mp4"], ["run"]])
def test_commands_refuse_a_gpu_that_is_not_there_in_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IFMDM_ENGINE__BACKEND", "cuda")
    monkeypatch.setenv("IFMDM_SERVER__PORT", "0")
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert shown.strip().splitlines()[-1].startswith('ifmdm: backend "cuda": ')
    assert not (tmp_path / "x.mp4").exists()


def test_the_doctor_tells_the_backend():
    state, told = doctor.check_backend(load_settings({"engine.backend": "cpu"}))
    assert state == doctor.GOOD
    assert told.startswith("cpu (asked for: cpu)") and onnxruntime.__version__ in told
