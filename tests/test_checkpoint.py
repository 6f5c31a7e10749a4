"""What a run of training starts from and what it keeps: nothing is lost, and nothing of it is silently wrong."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from engine.errors import InputError  # noqa: E402
from engine.training.checkpoint import start_from_weights  # noqa: E402


def network(seed: int, width: int = 4) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Linear(width, 2))


def shipped(folder: Path, model: torch.nn.Module, part: str = "renderer") -> Path:
    """A weights folder with one part in it, and numbers of the runtime beside."""
    folder.mkdir(exist_ok=True)
    tensors = {f"{part}.{name}": value.half() for name, value in model.state_dict().items()}
    save_file(tensors | {"runtime.swing": torch.ones(3)}, folder / "weights.safetensors")
    return folder


def test_a_start_from_weights_takes_them_widened(tmp_path, capsys):
    given, model = network(1), network(2)
    start_from_weights(model, shipped(tmp_path / "weights", given), "renderer")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, given.state_dict()[name].half().float())
    assert capsys.readouterr().out == f"started from {tmp_path}/weights/weights.safetensors; as initialised: nothing\n"


def test_a_start_from_weights_leaves_and_names_what_does_not_fit(tmp_path, capsys):
    given, model = network(1, width=5), network(2)
    model.add_module("3", torch.nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_from_weights(model, shipped(tmp_path / "weights", given), "renderer")
    after = model.state_dict()
    assert torch.equal(after["2.bias"], given.state_dict()["2.bias"].half().float())
    other = ["0.weight", "0.bias", "2.weight", "3.weight", "3.bias"]
    assert all(torch.equal(after[name], before[name]) for name in other)
    assert capsys.readouterr().out.endswith(f"as initialised: {', '.join(other)}\n")


def test_weights_that_cannot_be_started_from_are_refused_in_one_line(tmp_path):
    damaged, other = tmp_path / "damaged", shipped(tmp_path / "other", network(1), "motion")
    damaged.mkdir()
    (damaged / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes()[:-9])
    for folder, says in ((tmp_path, "cannot be read"), (damaged, "cannot be read"), (other, "fits the renderer")):
        with pytest.raises(InputError, match=says) as refused:
            start_from_weights(network(2), folder, "renderer")
        assert str(folder / "weights.safetensors") in str(refused.value)
        assert "\n" not in str(refused.value)
