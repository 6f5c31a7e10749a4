"""A run of training between its steps: what it starts from, keeps in its folder and resumes from.

The folder holds `checkpoint.pt`, and lines of figures in `held_out.jsonl`.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.errors import InputError

FILE = "checkpoint.pt"
NAMED = 8


@dataclass
class Run:
    """model, optimiser and the running average of the model's state after `step` steps; folder: where they are kept."""

    folder: Path
    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    step: int = 0

    @classmethod
    def open(cls, folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> "Run":
        """The run as its checkpoint left it, put into model and optimiser; without one a new run that begins with them.
        Raises InputError where the checkpoint is damaged or another model's."""
        if not (folder / FILE).is_file():
            return cls(folder, model, optimiser, snapshot(model))
        state = read(folder, str(next(model.parameters()).device))
        try:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            run = cls(folder, model, optimiser, state["average"], state["step"])
        except (LookupError, RuntimeError, TypeError, ValueError) as fault:
            raise InputError(f"{folder / FILE}: of another model than this one; give another --run folder") from fault
        print(f"{folder}: resumed at step {run.step}", flush=True)
        return run

    def save(self) -> None:
        """Replace the checkpoint, or leave it as it was where that is interrupted."""
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        unfinished = (self.folder / FILE).with_suffix(".tmp")
        torch.save(state | {"average": self.average, "step": self.step}, unfinished)
        unfinished.replace(self.folder / FILE)

    def advance(self, decay: float) -> int:
        """Count a step of the optimiser and let the average follow: slowly (it keeps a share of `decay` a step), but
        faster in the first steps, since it began with a model that knew nothing. Returns the steps so far."""
        self.step += 1
        follow(self.average, self.model, 1 - min(decay, (1 + self.step) / (10 + self.step)))
        return self.step

    def settle(self, part: str) -> None:
        """Make a part of the model that learns no more what its average is: the better of the two, and the one that
        latents are read with and that ships. It would follow the model elsewhere otherwise."""
        prefix = part + "."
        state = {name.removeprefix(prefix): v for name, v in self.average.items() if name.startswith(prefix)}
        self.model.get_submodule(part).load_state_dict(state)

    def report(self, figures: dict[str, float]) -> None:
        """Print the figures of held-out clips at this step, and keep them."""
        print(f"step {self.step} held-out " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
        append(self.folder / "held_out.jsonl", {"step": self.step} | figures)


def read(folder: Path, device: str = "cpu") -> dict:
    """The checkpoint in a run's folder: model, optimiser, average, step. Raises InputError."""
    path = folder / FILE
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder of a run that was begun") from None
    except Exception as fault:  # a damaged one raises whatever its reader stumbled over, from KeyError to EOFError
        raise InputError(f"{path}: damaged, or no checkpoint ({type(fault).__name__}); give another folder") from fault


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state, for an average to begin with."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def follow(average: dict[str, Tensor], model: nn.Module, share: float) -> None:
    """Move an average of the model's state towards the model by a share in 0..1."""
    for name, value in model.state_dict().items():
        average[name].lerp_(value, share)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Parameter groups that have a "share" learn at that share of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def cosine_rate(rate: float, step: int, steps: int, warmup: int, least: float = 0.0) -> float:
    """The learning rate of a step: rises to `rate` over `warmup` steps, and falls to the share `least` of it along half
    a cosine over all `steps`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return rate * min(1.0, (step + 1) / warmup) * (least + (1 - least) * cosine)


def add_lesson_arguments(parser: argparse.ArgumentParser, steps: int, batch: int, of: str) -> None:
    """What every command takes that teaches a part of a run of stage 1 apart; of: what a batch counts."""
    parser.add_argument("--cache", type=Path, required=True, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--run", type=Path, required=True, help="run folder of `ifmdm train renderer`, or a new one")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch, help=f"{of} a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def append(path: Path, line: dict) -> None:
    """Add one line of JSON."""
    with path.open("a") as log:
        log.write(json.dumps(line) + "\n")


def learned(folder: Path, part: str) -> dict[str, Tensor]:
    """Parameters of one part ("renderer", "motion", "speech") that a run has learned, in their average, or that a
    weights folder ships, in float16. Raises InputError where there are none."""
    if (folder / "weights.safetensors").is_file():
        return shipped_part(folder, part)
    if not (folder / FILE).is_file():
        raise InputError(f"{folder}: neither weights nor a run that was begun; give a folder of one or the other")
    average, prefix = read(folder)["average"], part + "."
    own = {name.removeprefix(prefix): value for name, value in average.items() if name.startswith(prefix)}
    return own or average  # a run of stage 1 is of the renderer alone


def load_learned(model: nn.Module, folder: Path, part: str) -> None:
    """Give a model all that `learned` finds. Raises InputError where that is another model's."""
    try:
        model.load_state_dict(learned(folder, part))
    except RuntimeError as fault:
        raise InputError(f"{folder}: no {part} there of this shape; give weights or a run that have it") from fault


def start_from_weights(model: nn.Module, run: Path, weights: Path, part: str) -> None:
    """Give the model of a new run what `learned` finds in a weights folder or another run for its part, in the model's
    own type. What is not there, or has another shape, stays as it was initialised, and is named in one printed line
    (beyond the first NAMED counted). Only names and shapes count: the weights may be of another version than this
    program's. Raises InputError, and so where the run has begun already."""
    if (run / FILE).is_file():
        raise InputError(f"{run / FILE}: this run has begun; leave out --from to resume it, or give another --run")
    own, shipped = model.state_dict(), learned(weights, part)
    fitting = {name: value for name, value in shipped.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        raise InputError(f"{weights}: nothing there fits the {part}; give weights or a run that have one")
    model.load_state_dict(own | fitting)
    fresh = [name for name in own if name not in fitting]
    some = ", ".join(fresh[:NAMED]) + (f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else "")
    print(f"started from {weights}; as initialised: {some or 'nothing'}", flush=True)


def shipped_part(weights: Path, part: str) -> dict[str, Tensor]:
    """Parameters of one part ("renderer", "motion", "speech") of a weights folder, float16 and without the part's name
    before theirs. Raises InputError."""
    path, prefix = weights / "weights.safetensors", part + "."
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as fault:
        raise InputError(f"{path}: cannot be read; give a folder made by `ifmdm train export`") from fault
