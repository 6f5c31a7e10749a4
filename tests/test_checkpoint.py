"""What a run of training starts from and what it keeps: nothing is lost, and nothing of it is silently wrong."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from engine.errors import InputError  # noqa: E402
from engine.training import checkpoint  # noqa: E402
from engine.training.checkpoint import Run, start_from_weights  # noqa: E402


def network(seed: int, width: int = 4) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Linear(width, 2))


def opened(folder: Path, model: torch.nn.Module | None = None) -> Run:
    """The run in a folder. Its model begins with numbers of its own, so that what it has read can be told from them."""
    model = network(99) if model is None else model
    return Run.open(folder, model, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1))


def train(run: Run, until: int) -> None:
    """Steps as the stages do them: what a step sees depends on its number alone."""
    while run.step < until:
        generator = torch.Generator().manual_seed(run.step)
        loss = (run.model(torch.randn(8, 3, generator=generator)) - 1).square().mean()
        checkpoint.set_rate(run.optimiser, checkpoint.cosine_rate(0.01, run.step, 20, 4))
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        run.advance(0.9)


def numbers(run: Run) -> dict[str, torch.Tensor | float]:
    """All that a run has come to, by name."""
    kept = {f"model {name}": value for name, value in run.model.state_dict().items()}
    kept |= {f"average {name}": value for name, value in run.average.items()}
    for index, moments in run.optimiser.state_dict()["state"].items():
        kept |= {f"moment {index} {name}": value for name, value in moments.items()}
    return kept | {"step": run.step, "rate": run.optimiser.param_groups[0]["lr"]}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[n]), torch.as_tensor(b[n])) for n in a)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, capsys):
    whole, first = opened(tmp_path, network(1)), opened(tmp_path, network(1))
    train(whole, 9)
    train(first, 4)
    first.save()
    resumed = opened(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}: resumed at step 4\n"
    assert same(numbers(resumed), numbers(first))
    train(resumed, 9)
    assert same(numbers(resumed), numbers(whole))
    assert not same(numbers(resumed), numbers(first))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_is_a_dictionary_of_four(tmp_path):
    """Those made before must resume: the names, and what is under them, stay."""
    made = opened(tmp_path, network(1))
    train(made, 2)
    state = {"model": made.model.state_dict(), "optimiser": made.optimiser.state_dict(), "average": made.average}
    torch.save(state | {"step": 2}, tmp_path / "checkpoint.pt")
    resumed = opened(tmp_path)
    assert same(numbers(resumed), numbers(made))
    resumed.save()
    assert set(torch.load(tmp_path / "checkpoint.pt", weights_only=True)) == {"model", "optimiser", "average", "step"}


def overwritten(data: bytes) -> bytes:
    return data[:200] + bytes(byte ^ 255 for byte in data[200:400]) + data[400:]


@pytest.mark.parametrize(
    "harm", [lambda _: b"", lambda data: data[: len(data) // 2], overwritten, lambda _: b"not a checkpoint"]
)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, harm):
    opened(tmp_path).save()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(InputError, match="damaged") as refused:
        opened(tmp_path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("state", [{"average": {}, "step": 3}, [1, 2]])
def test_a_checkpoint_without_all_of_a_run_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="of another model"):
        opened(tmp_path)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    opened(tmp_path, network(1, width=5)).save()
    with pytest.raises(InputError, match="of another model") as refused:
        opened(tmp_path, network(1))
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_checkpoint_has_none_to_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        checkpoint.read(tmp_path)


def test_an_interrupted_save_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    run = opened(tmp_path)
    train(run, 3)
    run.save()
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    train(run, 5)

    def interrupted(state: dict, path: Path) -> None:
        path.write_bytes(kept[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    again = opened(tmp_path)
    assert again.step == 3
    train(again, 5)
    again.save()  # over what the interrupted one left
    assert same(numbers(opened(tmp_path)), numbers(run))


def test_the_average_follows_fast_and_then_slowly(tmp_path):
    run = opened(tmp_path)
    for value in run.average.values():
        value.zero_()
    for value in run.model.state_dict().values():
        value.fill_(1.0)
    missing = 1.0
    for kept in (2 / 11, 3 / 12, 0.3, 0.3):  # from the third step on the limit is lower than 4 / 13
        run.advance(0.3)
        missing *= kept
        assert all(torch.allclose(value, torch.tensor(1 - missing)) for value in run.average.values())
    assert run.step == 4


def test_the_rate_warms_up_and_falls():
    rates = [checkpoint.cosine_rate(2.0, step, 1000, 10, least=0.1) for step in (0, 4, 500, 1000)]
    assert rates == pytest.approx([0.2, 1.0, 1.1, 0.2], rel=1e-3)
    assert checkpoint.cosine_rate(2.0, 999, 1000, 10) == pytest.approx(0, abs=1e-4)


def test_held_out_figures_are_printed_and_kept(tmp_path, capsys):
    run = opened(tmp_path)
    for step in (1, 2):
        run.step = step
        run.report({"mouth_ratio": 0.5, "eyes_ratio": 0.25 * step})
    assert capsys.readouterr().out.splitlines()[0] == "step 1 held-out mouth_ratio 0.500 eyes_ratio 0.250"
    lines = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "mouth_ratio": 0.5, "eyes_ratio": 0.25 * step} for step in (1, 2)]


def shipped(folder: Path, model: torch.nn.Module, part: str = "renderer") -> Path:
    """A weights folder with one part in it, and numbers of the runtime beside."""
    folder.mkdir(exist_ok=True)
    tensors = {f"{part}.{name}": value.half() for name, value in model.state_dict().items()}
    save_file(tensors | {"runtime.swing": torch.ones(3)}, folder / "weights.safetensors")
    return folder


def test_a_start_from_weights_takes_them_widened(tmp_path, capsys):
    given, model = network(1), network(2)
    start_from_weights(model, tmp_path, shipped(tmp_path / "weights", given), "renderer")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, given.state_dict()[name].half().float())
    assert capsys.readouterr().out == f"started from {tmp_path}/weights; as initialised: nothing\n"


def test_a_start_from_weights_leaves_and_names_what_does_not_fit(tmp_path, capsys):
    given, model = network(1, width=5), network(2)
    model.add_module("3", torch.nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_from_weights(model, tmp_path, shipped(tmp_path / "weights", given), "renderer")
    after = model.state_dict()
    assert torch.equal(after["2.bias"], given.state_dict()["2.bias"].half().float())
    other = ["0.weight", "0.bias", "2.weight", "3.weight", "3.bias"]
    assert all(torch.equal(after[name], before[name]) for name in other)
    assert capsys.readouterr().out.endswith(f"as initialised: {', '.join(other)}\n")
    model.add_module("4", torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4))))
    start_from_weights(model, tmp_path, tmp_path / "weights", "renderer")
    first = ", ".join([*other, "4.0.weight", "4.0.bias", "4.1.weight"])
    assert capsys.readouterr().out.endswith(f"as initialised: {first} and 5 more\n")


def test_weights_that_cannot_be_started_from_are_refused_in_one_line(tmp_path):
    damaged, other = tmp_path / "damaged", shipped(tmp_path / "other", network(1), "motion")
    damaged.mkdir()
    (damaged / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes()[:-9])
    faults = {tmp_path: "neither weights nor a run", damaged: "cannot be read", other: "fits the renderer"}
    for folder, says in faults.items():
        with pytest.raises(InputError, match=says) as refused:
            start_from_weights(network(2), tmp_path, folder, "renderer")
        assert str(refused.value).startswith(str(folder))
        assert "\n" not in str(refused.value)


def test_a_run_that_has_begun_does_not_start_over(tmp_path):
    opened(tmp_path).save()
    weights = shipped(tmp_path / "weights", network(1))
    with pytest.raises(InputError, match="this run has begun"):
        start_from_weights(network(2), tmp_path, weights, "renderer")
