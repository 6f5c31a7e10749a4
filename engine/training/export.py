"""`ifmdm train export`: checkpoints of both stages -> the weights that ship.

What is written (see engine/model.py for how it is read):
- `weights.safetensors`: every parameter of both stages in float16, and the few arrays of the runtime in float32.
  Training can start from it, and nothing in it can run code.
- `encoder.onnx`, `portrait.onnx`, `coefficients.onnx`, `speech.onnx`, `motion.onnx`: the graphs alone. Their weights
  are external data that point into `weights.safetensors`, so nothing is stored twice; float16 is widened when a session
  is made.
- `config.json`: sizes, and the SHA-256 of the other files.
"""

import argparse
import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.errors import InputError
from engine.features import LATENT_HOP, LogMel
from engine.model import FIELDS, FILES, RUNTIME_ARRAYS, VERSION, Model
from engine.motion.generator import OFFLINE, MotionGenerator, Statistics
from engine.motion.network import MotionShape, MotionTransformer, SpeechEncoder
from engine.motion.timing import LATENT_RATE
from engine.renderer.network import CROP, EYES, MOUTH, Renderer
from engine.style import Style, statistics
from engine.training.checkpoint import read, shipped_part
from engine.training.latents import load_renderer
from engine.training.modes import POSE, POSE_UNIT
from engine.training.prepare import SIZE
from engine.training.stage1 import crop, halve
from engine.training.stage2 import Corpus, Normaliser, load_motion, load_speech


class EncoderGraph(nn.Module):
    """A frame's latent, its crops taken from the portrait's boxes."""

    def __init__(self, renderer: Renderer):
        super().__init__()
        self.renderer = renderer

    def forward(self, picture: Tensor, mouth: Tensor, eyes: Tensor) -> Tensor:
        crops = crop(picture, mouth, CROP, CROP), crop(picture, eyes, CROP // 2, CROP)
        return self.renderer.encoder(halve(picture), *crops)


class PortraitGraph(nn.Module):
    """A portrait's fields."""

    def __init__(self, renderer: Renderer):
        super().__init__()
        self.renderer = renderer

    def forward(self, picture: Tensor, mouth: Tensor, eyes: Tensor) -> tuple[Tensor, ...]:
        crops = crop(picture, mouth, MOUTH, MOUTH), crop(picture, eyes, *EYES)
        fields = self.renderer.portrait(halve(picture), *crops)
        return tuple(getattr(fields, name) for name in FIELDS)


class CoefficientsGraph(nn.Module):
    """h, with the parameter names it has inside the renderer."""

    def __init__(self, renderer: Renderer):
        super().__init__()
        self.renderer = nn.Module()
        self.renderer.coefficients = renderer.coefficients

    def forward(self, latents: Tensor) -> Tensor:
        return self.renderer.coefficients(latents)


class MotionGraph(nn.Module):
    def __init__(self, motion: MotionTransformer):
        super().__init__()
        self.motion = motion

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.motion(*inputs)


class SpeechGraph(nn.Module):
    def __init__(self, speech: SpeechEncoder):
        super().__init__()
        self.speech = speech

    def forward(self, features: Tensor) -> Tensor:
        return self.speech(features)


def export_graph(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], path: Path,
                 batched: bool) -> None:  # fmt: skip
    dynamic = tuple({0: torch.export.Dim("batch", min=1, max=4096)} for _ in inputs) if batched else None
    if isinstance(module, MotionGraph):
        dynamic = (dynamic,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        torch.onnx.export(
            module.eval(), example, path, input_names=inputs, output_names=outputs, dynamic_shapes=dynamic,
            dynamo=True, optimize=False, external_data=False, verbose=False,
        )  # fmt: skip
        logging.disable(logging.NOTSET)


def point_into_safetensors(path: Path, weights: Path) -> None:
    """Replace the graph's own copies of parameters by references into the safetensors file, widened by a Cast."""
    raw = weights.read_bytes()[:8]
    header_size = int.from_bytes(raw, "little")
    header = json.loads(weights.read_bytes()[8 : 8 + header_size])
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        entry = header.get(tensor.name)
        if entry is None or entry["dtype"] != "F16":
            continue
        begin, end = entry["data_offsets"]
        name, dims = tensor.name, list(tensor.dims)
        assert dims == entry["shape"], name
        tensor.Clear()
        tensor.name, tensor.data_type = name + ":half", onnx.TensorProto.FLOAT16
        tensor.dims.extend(dims)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", weights.name),
            ("offset", 8 + header_size + begin),
            ("length", end - begin),
        ):
            tensor.external_data.add(key=key, value=str(value))
        casts.append(onnx.helper.make_node("Cast", [name + ":half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = casts + list(graph.node)
    for node in nodes:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    model.ClearField("metadata_props")
    path.write_bytes(model.SerializeToString())


@dataclass(frozen=True)
class Poses:
    """How latents and poses change together within clips. latents (N, D) and poses (N, 6), in units of POSE_UNIT, each
    less its clip's mean."""

    latents: np.ndarray
    poses: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, cache: Path) -> "Poses":
        """Of the training clips, at the frames whose landmarks a cache has."""
        from engine.training.batches import Cache
        from engine.training.stage1 import load_modes

        opened = Cache.open(cache)
        modes = load_modes(opened, cache)
        known = {clip["path"]: clip for clip in opened.clips}
        latents, poses = [], []
        for clip in corpus.split("train"):
            entry = known[clip["path"]]
            if abs(float(entry["fps"]) - LATENT_RATE) > 0.1:
                continue  # its latents are not those of its frames
            if clip.get("turned"):
                continue  # nor these, see turning.py
            at = np.array(entry["frames_at"])
            at = at[at < clip["count"]]
            z, pose = corpus.latents_of(clip)[at], modes.latents(opened.landmarks_of(entry)[: len(at)])[:, :POSE]
            latents.append(z - z.mean(0))
            poses.append(pose - pose.mean(0))
        return cls(np.concatenate(latents), np.concatenate(poses))

    @property
    def directions(self) -> np.ndarray:
        """(6, D): how the latent changes with each number of the pose, by ridge regression."""
        return np.linalg.solve(
            self.poses.T @ self.poses + np.eye(POSE) * 1e-4 * len(self.poses), self.poses.T @ self.latents
        )

    @property
    def reading(self) -> np.ndarray:
        """(D, 6): how the pose is read off a latent's change, by ridge regression."""
        scale = self.latents.std(0) + 1e-6
        x = self.latents / scale
        weights = np.linalg.solve(x.T @ x + np.eye(len(scale)) * 1e-3 * len(x), x.T @ self.poses)
        told = self.latents @ (weights / scale[:, None])
        explained = 1 - (self.poses - told).var(0) / self.poses.var(0)
        print("pose explained: " + " ".join(f"{value:.3f}" for value in explained), flush=True)
        return weights / scale[:, None]

    @property
    def degrees(self) -> np.ndarray:
        """(3, D): how the latent changes with one degree of yaw, pitch and roll."""
        return (self.directions[:3] / np.degrees(POSE_UNIT[:3])[:, None]).astype(np.float32)


#: How many people share the one identity of a source whose people are not told apart.
PEOPLE = {"lrc_ar": 35}


def runtime_arrays(
    corpus: Corpus, care: np.ndarray, normaliser: dict[str, np.ndarray], poses: Poses, ridge: float = 0.15
) -> dict[str, np.ndarray]:
    """What the runtime must know of the latents besides the networks' weights.

    mean_from_portrait (D + 1, D): a clip's mean latent from one frame's latent, last row the offset, so that a
    portrait's own look sets where its motion is centred: expressions go some way to those of people who speak, and the
    head stays where it is in the portrait. It is ridge regression of the way, so that a face unlike those on film
    keeps its own look, and people count alike, however many clips they are in.
    deviation (D,): the clips' deviation, in the mean square; swing (D,): see calibrate and widen. lips
    (2, D), lids (2, D) and head (6, D): how the lips' opening and width, the lids' opening and the pose follow
    from the normalised latent, made orthonormal. degrees (3, D): see Poses."""
    latent = corpus.latents.shape[1]
    clips = corpus.split("train")
    clips_of = Counter(clip["identity"] for clip in clips)
    rows, ways, weights, deviations = [], [], [], []
    for clip in clips:
        z = corpus.latents_of(clip)
        pick = z[:: max(1, len(z) // 6)]
        rows.append(pick)
        ways.append(z.mean(0) - pick)
        weights.append(np.full(len(pick), PEOPLE.get(clip["source"], 1) / clips_of[clip["identity"]]))
        deviations.append(z.std(0))
    x, way, w = np.concatenate(rows), np.concatenate(ways), np.concatenate(weights)[:, None]
    w /= w.sum()
    middle, within = (w * x).sum(0), normaliser["within"]
    x = np.concatenate([(x - middle) / within, np.ones((len(x), 1))], 1)
    moment = x.T @ (w * x)
    # as a share of how people differ, which is seven deviations of their motion for one encoder, and three for another
    penalty = ridge * np.trace(moment[:-1, :-1]) / latent * np.eye(latent + 1)
    penalty[-1, -1] = 1e-6
    goes = np.linalg.solve(moment + penalty, x.T @ (w * way))
    goes[:-1] /= within[:, None]
    goes[-1] -= middle @ goes[:-1]
    mean = np.eye(latent + 1, latent) + goes
    reading, directions = poses.reading, poses.directions
    kept = np.eye(latent + 1, latent) - mean  # what of the portrait's own latent the mean has not
    mean += kept @ reading @ directions
    # the head's directions, but for what of them moves lips or lids
    turned = reading * normaliser["within"][:, None]
    watched = np.linalg.qr(np.concatenate([care[:, latent : latent + 4], turned], 1))[0].T
    return {
        "runtime.mean_from_portrait": mean.astype(np.float32),
        "runtime.deviation": np.sqrt(np.mean(np.square(deviations), 0)).astype(np.float32),
        "runtime.lips": np.ascontiguousarray(watched[:2], np.float32),
        "runtime.lids": np.ascontiguousarray(watched[2:4], np.float32),
        "runtime.head": np.ascontiguousarray(watched[4:], np.float32),
        "runtime.degrees": poses.degrees,
        "runtime.swing": normaliser["within"].astype(np.float32),
        **{f"runtime.{name}": value.astype(np.float32) for name, value in normaliser.items()},
    }


def blink_of(
    clips: list[np.ndarray], gauges: Callable[[np.ndarray], np.ndarray], lids: np.ndarray, within: np.ndarray
) -> np.ndarray:
    """(D,) how far a blink moves a latent, along the directions of the lids alone: the mean of the clips of latents
    (n, D) in which eyes close. gauges: latents (n, D) -> (n, 2); lids (2, D) and within (D,): see runtime_arrays."""
    far = []
    for latents in clips:
        closed = gauges(latents)[:, 1]
        if closed.max() - np.median(closed) > BLINKS:
            far.append(lids @ ((latents[closed.argmax()] - np.median(latents, 0)) / within))
    print(f"blinks: in {len(far)} of {len(clips)} clips", flush=True)
    along = np.mean(far, 0) if far else np.zeros(len(lids))
    return (along @ lids * within).astype(np.float32)


def speaking_of(clips: list[tuple[str, np.ndarray]], gauges: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(1,) how far the lips of people who speak are apart: what the gauge says of the means of clips of latents (n, D),
    each with the name of who speaks. People count alike."""
    apart: dict[str, list[float]] = {}
    for who, latents in clips:
        apart.setdefault(who, []).append(float(gauges(latents.mean(0, keepdims=True))[0, 0]))
    return np.array([np.mean([np.mean(each) for each in apart.values()])], np.float32)


def export(
    renderer: Renderer, speech: SpeechEncoder, motion: MotionTransformer, arrays: dict[str, np.ndarray], output: Path,
    note: dict, licence: str,
) -> None:
    """Write the weights folder. licence: what may be done with them, in one line, for people to read."""
    output.mkdir(parents=True, exist_ok=True)
    parameters = {f"renderer.{k}": v for k, v in renderer.state_dict().items()}
    parameters |= {f"motion.{k}": v for k, v in motion.state_dict().items()}
    parameters |= {f"speech.{k}": v for k, v in speech.state_dict().items()}
    tensors = {name: value.detach().half().contiguous().numpy() for name, value in parameters.items()}
    weights = output / "weights.safetensors"
    safetensors.numpy.save_file(tensors | arrays, weights, metadata={"format": "ifmdm", "license": licence})
    # the graphs are traced with the rounded weights, so that what is checked is what ships
    renderer.load_state_dict({k: v.detach().half().float() for k, v in renderer.state_dict().items()})
    speech.load_state_dict({k: v.detach().half().float() for k, v in speech.state_dict().items()})
    motion.load_state_dict({k: v.detach().half().float() for k, v in motion.state_dict().items()})
    # two boxes, since one tensor given twice is traced as one input: the mouth would be looked for at the eyes
    mouth, eyes = torch.tensor([[0.3, 0.5, 0.4, 0.4]]), torch.tensor([[0.3, 0.3, 0.4, 0.2]])
    picture, boxes = (torch.rand(1, 3, SIZE, SIZE), mouth, eyes), ["picture", "mouth_box", "eyes_box"]
    export_graph(EncoderGraph(renderer), picture, boxes, ["latent"], output / "encoder.onnx", False)
    export_graph(PortraitGraph(renderer), picture, boxes, list(FIELDS), output / "portrait.onnx", False)
    export_graph(
        CoefficientsGraph(renderer), (torch.rand(2, renderer.shape.latent),), ["latents"], ["coefficients"],
        output / "coefficients.onnx", True,
    )  # fmt: skip
    shape: MotionShape = motion.shape
    window, latent = shape.window, shape.latent
    example = (
        torch.rand(2, window, latent), torch.rand(2, window), torch.ones(2, window), torch.ones(2, window),
        torch.rand(2, window, shape.speech), torch.ones(2), torch.rand(2, 2 * latent), torch.ones(2),
    )  # fmt: skip
    names = ["latents", "noise", "past", "present", "speech", "hears", "statistics", "knows"]
    heard = (torch.rand(2, 2 * window, 64),)
    export_graph(SpeechGraph(speech), heard, ["features"], ["speech"], output / "speech.onnx", True)
    export_graph(MotionGraph(motion), example, names, ["velocity"], output / "motion.onnx", True)
    for name in FILES[1:]:
        point_into_safetensors(output / name, weights)
    config = {
        "version": VERSION,
        "licence": licence,
        "renderer": asdict(renderer.shape),
        "motion": asdict(shape),
        "training": note,
        "sha256": {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in FILES},
    }
    (output / "config.json").write_text(json.dumps(config, indent=1) + "\n")


UNLICENSED = "not stated"
#: A clip in which the gauge rises by this much above its median holds a blink.
BLINKS = 0.6
#: So landmarks see mouths that speak swing about as widely as real ones; at 1.07 jitter was more (MODEL_CARD.md).
OPENING = 0.97
#: More than this makes jitter of a head's motion; what moves too much is calmed by no more than that.
WIDEST, NARROWEST = 1.55, 0.85


def _spoken(model: Model, corpus: Corpus, count: int, goal: Callable[[np.ndarray], Statistics], swing: np.ndarray):
    """Of `count` training clips, evenly over the split: each one's latents (n, D), and those generated from its speech
    as they ship, aiming at what `goal` makes of its latents."""
    every = corpus.split("train")
    for number, at in enumerate(np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)):
        z = corpus.latents_of(every[at])
        speech = LogMel().push(np.pad(corpus.audio_of(every[at]), (0, 20 * LATENT_HOP)))
        yield z, MotionGenerator.of(model, goal(z), z[0], number, OFFLINE, swing=swing).push(speech)[: len(z)]


def calibrate(directory: Path, corpus: Corpus, clips: int = 60) -> np.ndarray:
    """(D,) the swing that makes motion as wide as it is asked to be.

    A few sampler steps, a short hop after a known past, a head that is steadied: all pull towards the expected motion
    and swing too little. So clips are generated from their speech, each asked for its own statistics, and what each
    number lacks of their deviation becomes a factor, between 1 (less would take the lips' swing away, too) and 2.2
    (more makes jitter of it)."""
    model = Model.load(directory)
    within = model.arrays["within"]
    pairs = _spoken(model, corpus, clips, lambda z: Statistics(z.mean(0), z.std(0)), within)
    asked, got = np.sum([(z.std(0), made.std(0)) for z, made in pairs], 0)
    factor = asked / got
    print("swing: " + " ".join(f"{value:.2f}" for value in factor), flush=True)
    return (within * np.clip(factor, 1.0, 2.2)).astype(np.float32)


def widen(
    directory: Path, corpus: Corpus, heads: float = 1.0, mouths: float = OPENING, clips: int = 120
) -> np.ndarray:
    """(D,) the swing with which heads move, and lips open, as widely as people's.

    At run time nobody knows a clip's own statistics. Clips that are asked for the average ones move less, all in all,
    than people, of whom some hardly move and some much; what each of the head's directions lacks becomes a factor,
    between NARROWEST and WIDEST. heads: how many times as widely as theirs heads shall move; mouths: by how much more
    lips shall, which is what the renderer lacks or has too much."""
    model = Model.load(directory)
    within, head, swing = (model.arrays[name] for name in ("within", "head", "swing"))
    pairs = _spoken(model, corpus, clips, lambda z: statistics(model, z[0], Style()), swing)
    people, made = np.sum([[((x - x.mean(0)) / within @ head.T).std(0) for x in pair] for pair in pairs], 0)
    factor = heads * np.clip(people / made, NARROWEST, WIDEST)
    told = " ".join(f"{lacks:.2f}" for lacks in made / people)
    by = " ".join(f"{value:.2f}" for value in factor)
    print(f"heads: {told} times as wide as people's, made {by} times as wide", flush=True)
    lips = model.arrays["lips"]
    return stretched(swing, np.concatenate([head, lips]), np.concatenate([factor, np.full(len(lips), mouths)]))


def stretched(swing: np.ndarray, directions: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Swing (D,) with which motion along orthonormal directions (k, D) is factors (k,) times as wide: exactly if each
    is a number of the latent, and as well as one factor a number can otherwise."""
    return (swing * np.sqrt(1 + (np.square(factors) - 1) @ np.square(directions))).astype(np.float32)


def write_array(directory: Path, name: str, value: np.ndarray) -> None:
    """Overwrite one float32 array of the weights in place (the graphs' offsets stay true) and renew the hashes."""
    path = directory / "weights.safetensors"
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        assert entry["dtype"] == "F32" and entry["shape"] == list(value.shape), entry
        file.seek(8 + size + entry["data_offsets"][0])
        file.write(value.astype("<f4").tobytes())
    config = json.loads((directory / "config.json").read_text())
    config["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--renderer", type=Path, required=True, help="run folder of `ifmdm train renderer`")
    parser.add_argument("--output", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--from", type=Path, dest="weights", help="weights folder that all but the renderer comes "
                        "from, which must have kept its encoder; instead of what follows")  # fmt: skip
    parser.add_argument("--speech", type=Path, help="run folder of `ifmdm train speech`, or that of "
                        "`motion` if it learned along there")  # fmt: skip
    parser.add_argument("--motion", type=Path, help="run folder of `ifmdm train motion`")
    parser.add_argument("--latents", type=Path, help="folder made by `ifmdm train latents`")
    parser.add_argument("--cache", type=Path, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--heads", type=float, default=1.0, help="how many times as widely as people's of the film "
                        "heads shall move: more where those sat still")  # fmt: skip
    parser.add_argument("--mouths", type=float, default=OPENING, help="how many times as widely as those of the film "
                        "lips shall move: more where pictures show less of it")  # fmt: skip
    parser.add_argument("--blinks", type=float, default=1.5, help="how much more noise what moves lids gets than all "
                        "else: more where people of the film blink in their pauses alone")  # fmt: skip
    parser.add_argument("--licence", help="what may be done with these weights, in one line (default: that of --from, "
                        "or \"not stated\")")  # fmt: skip


def _renewed(renderer: Renderer, steps: int, weights: Path, output: Path, licence: str | None) -> None:
    """Export a renderer with all else as a weights folder has it. Raises InputError where its encoder is another one:
    then latents mean something else, and stage 2 must learn them."""
    shipped = shipped_part(weights, "renderer")

    def kept(part: str) -> bool:
        state = renderer.get_submodule(part).state_dict()
        there = {name: shipped.get(f"{part}.{name}", torch.empty(0)) for name in state}
        return all(torch.equal(value.half(), there[name]) for name, value in state.items())

    if not kept("encoder"):
        raise InputError(f"{weights}: its encoder is not the renderer's; train motion on the new one's latents")
    if not kept("coefficients.gauges"):
        print("note: the gauges are other ones; how lips part and lids close in film stays as the old ones read it")
    shape = MotionShape(latent=renderer.shape.latent)
    motion = MotionTransformer(shape).eval()
    motion.load_state_dict(shipped_part(weights, "motion"))
    with safe_open(weights / "weights.safetensors", "numpy") as file:
        names = [name for name in file.keys() if name.startswith("runtime.")]  # noqa: SIM118 (no mapping)
        arrays = {name: file.get_tensor(name) for name in names}
    lacking = [name for name in RUNTIME_ARRAYS if f"runtime.{name}" not in arrays]
    if lacking:
        raise InputError(f"{weights}: of an older version, without `{lacking[0]}`; export from the runs that made it")
    config = json.loads((weights / "config.json").read_text())
    note, licence = config["training"] | {"renderer_steps": steps}, licence or config.get("licence", UNLICENSED)
    export(renderer, load_speech(weights, shape), motion, arrays, output, note, licence)


def _made(renderer: Renderer, steps: int, args: argparse.Namespace) -> None:
    """Export what the runs of both stages learned, and measure what the runtime must know of it."""
    corpus = Corpus.open(args.latents)
    shape = MotionShape(latent=renderer.shape.latent)
    speech, motion = load_speech(args.speech, shape), load_motion(args.motion, shape)
    normaliser = vars(Normaliser.load(args.motion))
    arrays = runtime_arrays(corpus, np.load(args.latents / "care.npy"), normaliser, Poses.of(corpus, args.cache))
    arrays["runtime.blinks"] = np.array([args.blinks], np.float32)
    clips = [(clip["identity"], corpus.latents_of(clip)) for clip in corpus.split("train") if not clip.get("turned")]

    def gauges(latents: np.ndarray) -> np.ndarray:
        return renderer.coefficients.gauges(torch.from_numpy(latents)).numpy()

    with torch.no_grad():
        lids, within = arrays["runtime.lids"], arrays["runtime.within"]
        arrays["runtime.blink"] = blink_of([latents for _, latents in clips], gauges, lids, within)
        arrays["runtime.speaking"] = speaking_of(clips, gauges)
    note = {"renderer_steps": steps, "motion_steps": read(args.motion)["step"]}
    export(renderer, speech, motion, arrays, args.output, note, args.licence or UNLICENSED)
    write_array(args.output, "runtime.swing", calibrate(args.output, corpus))
    write_array(args.output, "runtime.swing", widen(args.output, corpus, args.heads, args.mouths))


def run(args: argparse.Namespace) -> int:
    missing = [name for name in ("speech", "motion", "latents", "cache") if getattr(args, name) is None]
    if args.weights is None and missing:
        raise InputError(f"--{missing[0]} is missing; give it, or --from with the weights that have it")
    renderer = load_renderer(args.renderer)
    steps = read(args.renderer)["step"]
    if args.weights is not None:
        _renewed(renderer, steps, args.weights, args.output, args.licence)
    else:
        _made(renderer, steps, args)
    for name in (*FILES, "config.json"):
        (args.output / name).chmod(0o644)
    size = sum((args.output / name).stat().st_size for name in (*FILES, "config.json"))
    print(f"exported: {args.output}, {size / 2**20:.1f} MiB")
    return 0
