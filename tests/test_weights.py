"""Weights: what is exported is what runs, and a damaged folder is refused in one line."""

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from engine.backend import CpuBackend
from engine.model import FIELDS, FILES, RUNTIME_ARRAYS, WEIGHTS, Model, WeightsError, find_weights
from engine.renderer.cpu import GAUGES, FieldCounts, portrait_inputs, resting
from plugin import doctor
from plugin.settings import load_settings

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(weights) -> Model:
    return Model.load(weights)


@pytest.fixture(scope="module")
def networks(weights):
    """Both stages in torch, rebuilt from the folder's safetensors alone."""
    from engine.motion.network import MotionShape, MotionTransformer, SpeechEncoder
    from engine.renderer.network import Renderer, RendererShape

    config = json.loads((weights / "config.json").read_text())
    built = {
        "renderer": Renderer(RendererShape(**config["renderer"])),
        "motion": MotionTransformer(MotionShape(**config["motion"])),
        "speech": SpeechEncoder(config["motion"]["speech"]),
    }
    with safe_open(weights / "weights.safetensors", "pt") as file:
        for prefix, network in built.items():
            names = [name for name in file.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118  (no mapping)
            state = {name.removeprefix(f"{prefix}."): file.get_tensor(name).float() for name in names}
            network.load_state_dict(state)
            network.eval()
    return built["renderer"], built["motion"], built["speech"]


def same(ours: np.ndarray, truth: "torch.Tensor") -> bool:
    truth = truth.detach().numpy()
    assert ours.shape == truth.shape
    assert ours.dtype == np.float32
    return np.abs(ours - truth).max() <= 1e-4 * max(1.0, np.abs(truth).max())


def crops(picture: "torch.Tensor", box: np.ndarray, height: int, width: int) -> "torch.Tensor":
    from engine.training.stage1 import crop

    return crop(picture, torch.from_numpy(box), height, width)


def test_encoder_and_portrait_graphs_are_the_networks(model, networks, ada_portrait):
    from engine.renderer.network import CROP, EYES, MOUTH
    from engine.training.stage1 import halve

    renderer, *_ = networks
    inputs = portrait_inputs(ada_portrait.pixels, ada_portrait.keypoints)
    picture = torch.from_numpy(inputs["picture"])
    mouth, eyes = inputs["mouth_box"], inputs["eyes_box"]
    with torch.no_grad():
        latent = renderer.encoder(
            halve(picture), crops(picture, mouth, CROP, CROP), crops(picture, eyes, CROP // 2, CROP)
        )
        fields = renderer.portrait(halve(picture), crops(picture, mouth, MOUTH, MOUTH), crops(picture, eyes, *EYES))
    assert same(model.encode(inputs)[None], latent)
    for name, ours in zip(FIELDS, model._portrait(inputs), strict=True):
        truth = getattr(fields, name)
        scale = float(truth.abs().max())
        assert 1e-4 < scale < 100
        assert same(ours / np.float32(scale), truth / scale), name
    prepared = model.prepare(ada_portrait)
    assert isinstance(prepared.counts, FieldCounts)
    assert prepared.head.shape == (prepared.counts.head, 32 * 32 * 2)
    assert np.allclose(prepared.latent + prepared.misread, model.encode(inputs), atol=1e-5)
    seen = resting({name: np.asarray(value) for name, value in zip(FIELDS, model._portrait(inputs), strict=True)})
    told, read = (model.coefficients(latent)[-GAUGES:] for latent in (prepared.latent, model.encode(inputs)))
    assert (np.abs(told - seen) <= np.abs(read - seen) + 1e-3).all()  # nearer to what the picture shows
    assert np.array_equal(prepared.coefficients, model.coefficients(prepared.latent))


def test_coefficients_are_the_networks(model, networks):
    renderer, *_ = networks
    latents = np.random.default_rng(0).normal(size=(5, renderer.shape.latent)).astype(np.float32)
    with torch.no_grad():
        truth = renderer.coefficients(torch.from_numpy(latents))
    assert truth.shape == (5, renderer.shape.coefficients + GAUGES)
    assert same(model._coefficients({"latents": latents})[0], truth)
    assert same(model.coefficients(latents[0]), truth[0])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_motion_graph_is_the_network(model, networks, batch):
    _, motion, _ = networks
    window, latent = motion.shape.window, motion.shape.latent
    rng = np.random.default_rng(batch)
    past = np.zeros((batch, window), np.float32)
    past[:, 4:9] = 1
    present = np.ones((batch, window), np.float32)
    present[:, :4] = 0
    inputs = {
        "latents": rng.normal(size=(batch, window, latent)), "noise": (1 - past) * rng.uniform(size=(batch, 1)),
        "past": past, "present": present, "speech": rng.normal(size=(batch, window, motion.shape.speech)),
        "hears": np.arange(batch) != 1, "statistics": rng.normal(size=(batch, 2 * latent)),
        "knows": np.arange(batch) != 2,
    }  # fmt: skip
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    with torch.no_grad():
        truth = motion(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert float(truth.abs().max()) > 0.01
    assert same(model.velocity(**inputs), truth)


def test_the_speech_graph_is_the_network(model, networks):
    features = np.random.default_rng(0).normal(size=(1, 2 * model.window, 64)).astype(np.float32)
    with torch.no_grad():
        truth = networks[2](torch.from_numpy(features))
    assert truth.shape == (1, model.window, model.config["motion"]["speech"])
    assert same(model.listen(features), truth)


def test_tokens_before_the_stream_do_not_matter(model):
    """What stands where nothing is present must not reach what is: the generator leaves zeros there."""
    window, latent = model.window, model.config["motion"]["latent"]
    rng = np.random.default_rng(0)
    present = np.ones((1, window), np.float32)
    present[:, :6] = 0
    inputs = {
        "latents": rng.normal(size=(1, window, latent)), "noise": np.full((1, window), 0.5), "past": 0 * present,
        "present": present, "hears": np.ones(1),
        "speech": rng.normal(size=(1, window, model.config["motion"]["speech"])),
        "statistics": rng.normal(size=(1, 2 * latent)), "knows": np.ones(1),
    }  # fmt: skip
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    other = inputs | {"latents": inputs["latents"].copy()}
    other["latents"][:, :6] = 7
    assert np.abs(model.velocity(**inputs)[:, 6:] - model.velocity(**other)[:, 6:]).max() < 1e-4


def test_the_arrays_of_the_runtime_come_back(untrained):
    arrays = Model.load(untrained.directory).arrays
    assert set(arrays) == set(RUNTIME_ARRAYS)
    for name, value in arrays.items():
        assert np.array_equal(value, untrained.arrays[f"runtime.{name}"])
        assert value.dtype == np.float32


def test_parameters_are_stored_once_in_half_precision_and_nothing_in_them_runs(untrained):
    folder = untrained.directory
    assert {path.name for path in folder.iterdir()} == {*FILES, "config.json"}
    networks = (untrained.renderer, untrained.speech, untrained.motion)
    count = sum(v.numel() for network in networks for v in network.state_dict().values())
    arrays = sum(value.nbytes for value in untrained.arrays.values())
    data = (folder / "weights.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert len(data) == 8 + header + 2 * count + arrays
    assert json.loads(data[8 : 8 + header])["__metadata__"]["format"] == "ifmdm"
    for name in FILES[1:]:
        graph = onnx.load(folder / name, load_external_data=False).graph
        outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places = {entry.value for t in outside for entry in t.external_data if entry.key == "location"}
        assert places == {"weights.safetensors"}
        assert {t.data_type for t in outside} == {onnx.TensorProto.FLOAT16}
        inside = sum(t.ByteSize() for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
        assert inside < 60_000  # the windows of the patches
        assert b"/" + b"home" not in (folder / name).read_bytes()


def refused(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        Model.load(folder)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.fixture
def folder(untrained, tmp_path) -> Path:
    return shutil.copytree(untrained.directory, tmp_path / "weights")


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_set_that_ships_is_whole_and_says_its_licence(name):
    model = Model.load(find_weights(name))
    assert len(model.licence) > 10
    assert model.licence.isprintable()


def test_weights_are_a_set_or_a_folder(folder):
    assert find_weights(str(folder)) == folder
    assert Model.load(folder).licence == "for tests"
    assert "give one of research, clean, or a folder" in refused(find_weights("claen"))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_or_a_missing_file_is_named(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        path.write_bytes(data)
        assert "damaged" in refused(folder)
        assert name in refused(folder)
        data[at] ^= 1
    path.write_bytes(data[:-1])
    assert "damaged" in refused(folder)
    path.write_bytes(data)
    assert Model.load(folder).window == 16
    path.unlink()
    assert f"{path}: missing" in refused(folder)
    path.mkdir()
    assert "missing" in refused(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "{}", '{"sha256": {}}', '{"sha256": []}', '{"sha256": {"motion.onnx": "0"}}', "\udcff"],
)
def test_a_config_that_makes_no_sense_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json: cannot be read" in refused(folder)


def without(mapping: dict, key: str) -> dict:
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c | {"renderer": without(c["renderer"], "eyes_flow")},
        lambda c: c | {"renderer": c["renderer"] | {"ears": 3}},
        lambda c: c | {"renderer": c["renderer"] | {"head": "3"}},
        lambda c: c | {"renderer": c["renderer"] | {"head": True}},
        lambda c: c | {"renderer": 7},
        lambda c: c | {"motion": c["motion"] | {"window": "16"}},
        lambda c: c | {"motion": c["motion"] | {"window": 16.0}},
        lambda c: c | {"motion": c["motion"] | {"window": 0}},
    ],
)
def test_a_config_without_the_numbers_that_are_needed_is_refused(folder, spoil):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(spoil(config)))
    assert "config.json: cannot be read" in refused(folder)


def replaced(folder: Path, data: bytes) -> None:
    """Other arrays, with a hash that fits."""
    (folder / "weights.safetensors").write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    config["sha256"]["weights.safetensors"] = hashlib.sha256(data).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def test_arrays_that_lack_one_are_refused_although_their_hash_fits(folder, untrained):
    whole = {name: value for name, value in untrained.arrays.items() if name != "runtime.blink"}
    replaced(folder, save(whole))
    assert "weights.safetensors: not as this ifmdm needs it" in refused(folder)
    assert "runtime.blink" in refused(folder)
    replaced(folder, b"nothing of the kind")
    assert "weights.safetensors: not as this ifmdm needs it" in refused(folder)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    opened = Path.open

    def guarded(self, *given, **more):
        if self.name == "motion.onnx":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *given, **more)

    monkeypatch.setattr(Path, "open", guarded)
    assert "motion.onnx: cannot be read (Permission denied)" in refused(folder)


def test_a_network_is_loaded_once_however_many_threads_ask(folder):
    class Slow(CpuBackend):
        loaded = 0

        def network(self, path, shared=False):
            self.loaded += 1
            time.sleep(0.05)
            return lambda inputs: []

    model = Model.load(folder, backend=Slow())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model._motion, range(4)))
    assert model.backend.loaded == 1
    assert all(each is found[0] for each in found)


def test_a_folder_without_config_and_one_of_another_version_are_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"version": 99}))
    assert "version 99" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)
    assert "no config.json" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "no config.json" in refused(tmp_path / "file")


def test_the_doctor_tells_the_weights_and_their_licence(elsewhere, untrained, tmp_path):
    state, text = doctor.check_weights(load_settings({"engine.weights": str(untrained.directory)}))
    assert state == doctor.GOOD
    assert str(untrained.directory) in text
    assert text.endswith("none damaged; for tests")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        doctor.check_weights(load_settings({"engine.weights": str(tmp_path / "none")}))
