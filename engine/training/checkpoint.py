"""What a run of training starts from."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from engine.errors import InputError


def start_from_weights(model: nn.Module, folder: Path, part: str) -> None:
    """Give a new model the parameters that a weights folder ships for its part ("renderer", "motion"), widened from
    float16 to the model's own type. What the file lacks or has in another shape stays as it was initialised, and is
    named in one printed line. The folder may be of another version than this program's: only names and shapes count.
    Raises InputError."""
    path = folder / "weights.safetensors"
    prefix = part + "."
    try:
        with safe_open(path, "pt") as file:
            shipped = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except (OSError, SafetensorError) as fault:
        raise InputError(f"{path}: cannot be read ({fault}); give a folder made by `ifmdm train export`") from fault
    own = model.state_dict()
    known = {name: shipped.get(prefix + name) for name in own}
    fitting = {name: value for name, value in known.items() if value is not None and value.shape == own[name].shape}
    if not fitting:
        raise InputError(f"{path}: no parameter there fits the {part}; give a folder made by `ifmdm train export`")
    model.load_state_dict(own | fitting)
    fresh = [name for name in own if name not in fitting]
    print(f"started from {path}; as initialised: {', '.join(fresh) or 'nothing'}", flush=True)


def refuse_to_start_over(checkpoint: Path) -> None:
    """Raises InputError where a run has a checkpoint already, which starting from weights would pass over."""
    if checkpoint.is_file():
        raise InputError(f"{checkpoint}: this run has begun; leave out --from to resume it, or give a new --run folder")
