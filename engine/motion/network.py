"""Stage 2 in torch: the motion diffusion transformer (training and export only).

A window of W latents at 25 Hz is denoised at once: its first tokens are the clean past (the prefix), the last ones a
short look-ahead. Tokens carry their own noise level, zero for the past, so that one network serves every split of the
window into past and new (in the manner of Chen et al. 2024, "Diffusion Forcing"). Blocks are DiT blocks with adaLN-zero
(Peebles and Xie 2023). Conditions are the speech of the window and the motion statistics of the clip (IF-MDM,
arXiv 2412.04000, section 3.2), each replaced by a learned "unknown" when dropped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.features import BANDS, FEATURES_PER_LATENT


@dataclass(frozen=True)
class MotionShape:
    """Sizes of the motion model. latent: numbers a frame; window: latents a window; speech: numbers a latent that
    the speech encoder gives."""

    latent: int = 24
    window: int = 40
    width: int = 192
    speech: int = 256
    depth: int = 6
    heads: int = 6
    dropout: float = 0.1  # in training only


def time_embedding(noise: Tensor, width: int) -> Tensor:
    """Noise levels (...) in 0..1 -> (..., width) sinusoids."""
    rates = torch.exp(torch.linspace(0.0, 6.0, width // 2, device=noise.device))
    angle = noise[..., None] * rates
    return torch.cat([angle.sin(), angle.cos()], -1)


def rotary(window: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (window, width / 2) of rotary positions (Su et al. 2021)."""
    rates = 1.0 / (200.0 ** (torch.arange(0, width, 2) / width))
    angle = torch.arange(window)[:, None] * rates
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Self-attention and MLP, each scaled, shifted and gated by the condition."""

    def __init__(self, shape: MotionShape):
        super().__init__()
        self.heads = shape.heads
        self.dropout = nn.Dropout(shape.dropout)
        self.norm1 = nn.LayerNorm(shape.width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(shape.width, elementwise_affine=False)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.project = nn.Linear(shape.width, shape.width)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width), nn.GELU("tanh"), nn.Linear(4 * shape.width, shape.width)
        )
        self.condition = nn.Linear(shape.width, 6 * shape.width)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(condition).chunk(6, -1)
        batch, window, width = x.shape
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).view(batch, window, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask)
        x = x + gate1 * self.dropout(self.project(y.transpose(1, 2).reshape(batch, window, width)))
        y = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.dropout(self.mlp(y))


class _Listen(nn.Module):
    """A residual block over time: a dilated convolution, then a mix of the channels."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, 1, 2 * dilation, dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, n) -> the same shape."""
        y = self.norm(x.mT).mT
        return x + self.mix(F.gelu(self.conv(y), approximate="tanh"))


class SpeechEncoder(nn.Module):
    """Log-mel of a window (B, 2 W, 64) -> what is being said, (B, W, speech): one vector a latent. It sees 0.65 s to
    both sides as far as the window goes, and is taught by a speech recogniser (see training/distil.py)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv1d(BANDS, width, 5, 1, 2)
        self.blocks = nn.ModuleList(_Listen(width, dilation) for dilation in (1, 2, 4, 8))
        self.last = nn.Conv1d(width, width, 4, FEATURES_PER_LATENT, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        x = F.gelu(self.first(features.mT), approximate="tanh")
        for block in self.blocks:
            x = block(x)
        return self.norm(self.last(x).mT)


class MotionTransformer(nn.Module):
    """Predicts the flow-matching velocity (noise - latent) of every token. Speech comes encoded, so that the encoder
    runs once a hop and not at every sampler step."""

    def __init__(self, shape: MotionShape | None = None):
        super().__init__()
        self.shape = shape = shape or MotionShape()
        width = shape.width
        self.dropout = nn.Dropout(shape.dropout)
        self.speech_in = nn.Linear(shape.speech, width)
        self.no_speech = nn.Parameter(torch.randn(width) * 0.02)
        self.latent_in = nn.Linear(shape.latent, width)
        self.past_in = nn.Linear(shape.latent, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.statistics = nn.Sequential(nn.Linear(2 * shape.latent, width), nn.SiLU(), nn.Linear(width, width))
        self.no_statistics = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, shape.latent)
        for layer in (self.final, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        cos, sin = rotary(shape.window, width // shape.heads)
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        past: Tensor,
        present: Tensor,
        speech: Tensor,
        hears: Tensor,
        statistics: Tensor,
        knows: Tensor,
    ) -> Tensor:
        """latents (B, W, D): clean where past, noisy elsewhere; noise (B, W): noise level 0..1; past (B, W): 1 for the
        prefix; present (B, W): 0 for tokens that do not exist (before the stream began); speech (B, W, S): by the
        speech encoder; hears (B,): 0 drops it; statistics (B, 2 D): normalised mean and log standard deviation; knows
        (B,): 0 drops them. All float. Returns velocities (B, W, D)."""
        speech = self.speech_in(self.dropout(speech))
        speech = torch.where(hears[:, None, None] > 0.5, speech, self.no_speech)
        known = torch.where(knows[:, None] > 0.5, self.statistics(statistics), self.no_statistics)
        clean = past[..., None]
        x = self.latent_in(latents) * (1 - clean) + self.past_in(latents) * clean + speech
        condition = F.silu(self.time(time_embedding(noise, self.shape.width)) + known[:, None] + speech)
        mask = (present[:, None, None, :] - 1.0) * 1e4  # absent tokens are not attended to
        for block in self.blocks:
            x = block(x, condition, mask, self.rotary_cos, self.rotary_sin)
        shift, scale = self.final(condition).chunk(2, -1)
        return self.out(self.norm(x) * (1 + scale) + shift)
