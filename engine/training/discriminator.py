"""The adversary of the mouth: tells real mouth windows from rendered ones, patch by patch.

A mean of all mouths that a latent allows is a blur, and that is what L1 asks for. The adversary asks for one of them:
PatchGAN (Isola et al. 2017), hinge loss, and features matched (Wang et al. 2018). It is shown the windows and, made
stronger, their finest detail, which is where rendered mouths differ from real ones: without, it learned nothing in 500
steps. It is used in training only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 64, 128)
#: How much stronger than the window itself its finest detail is shown.
DETAIL = 10.0


class Discriminator(nn.Module):
    """Windows (N, 3, H, W) in 0..1 -> features of each layer, the last one being the scores (N, 1, h, w)."""

    def __init__(self):
        super().__init__()
        layers, last = [], 6
        for width in WIDTHS:
            norm = nn.GroupNorm(8, width) if last > 6 else nn.Identity()
            layers.append(nn.Sequential(nn.Conv2d(last, width, 4, 2, 1), norm, nn.LeakyReLU(0.2)))
            last = width
        layers.append(nn.Conv2d(last, 1, 3, 1, 1))
        self.layers = nn.ModuleList(layers)

    def forward(self, windows: Tensor) -> list[Tensor]:
        detail = windows - F.avg_pool2d(windows, 3, 1, 1, count_include_pad=False)
        features = [torch.cat([windows * 2 - 1, detail * DETAIL], 1)]
        for layer in self.layers:
            features.append(layer(features[-1]))
        return features[1:]


def discriminator_loss(discriminator: Discriminator, true: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of telling them apart."""
    discriminator.requires_grad_(True)
    real, fake = discriminator(true)[-1], discriminator(made.detach())[-1]
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def adversarial_loss(discriminator: Discriminator, true: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """What the renderer is to lessen: how well it is seen through, and how far the features are from the true ones. The
    discriminator itself learns nothing from it."""
    discriminator.requires_grad_(False)
    with torch.no_grad():
        real = discriminator(true)
    fake = discriminator(made)
    far = sum((a - b).abs().mean() / b.abs().mean().clamp(min=1e-3) for a, b in zip(fake[:-1], real[:-1], strict=True))
    return -fake[-1].mean(), far / (len(fake) - 1)
