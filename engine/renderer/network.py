"""Stage 1 in torch: motion encoder, portrait network and coefficients (training and export only).

The renderer is a motion basis. A portrait is turned once into fields; a frame is then
`c = h(z) - h(z_portrait)` and, for an output point x,

    y = x + sum_k c_k H_k(x)                  the head moves           (fields over the picture, 32 x 32)
    u = y + sum_k c_k L_k(y)                  the face deforms         (fields over the picture, 128 x 128,
                                                                        and finer ones in the mouth and eyes boxes)
    (t, a) = sum_r c_r T_r(y)                 new texture appears      (mouth and eyes boxes: cavity, lids; that of the
                                                                        mouth has sharp edges, see lips.py)
    a = max(a, s(y) g_1(y))                   lips part                (g: of numbers read off the latent, see Gauges,
                                                                        inside.apart and lids.come_down)
    t = (1 - s(y)) t + a s(y) I(y)            what a mouth holds       (I: drawn once, fixed to the head, see inside.py;
                                                                        s: where it is seen, see Fields)
    (t, a) = (1 - g_2) (t, a) + g_2 (J, 1)    lids come down           (J: drawn once, see lids.py)
    v = front(u) + (1 - m(u)) back(x)         the background stays     (m: the person's matte, see layers)
    frame(x) = (1 - a) v + t                  where it covers the old  (a: its opacity, t: its premultiplied colour)

Texture and deformation live in the portrait's own coordinates, before the head moves, so they stay on the face. At the
portrait's own motion every coefficient is zero and the frame is the portrait, but for what is darker than the
background filled in there, where that shows through.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.renderer import lids, lips
from engine.renderer.cpu import GAUGES, WIDEST
from engine.renderer.inside import INSIDE, apart, uncovered

MOUTH = 96  # side of the mouth patch
EYES = (48, 96)  # height and width of the eyes patch
HEAD_FIELD = 32
FACE_FIELD = 128
CROP = 64  # side of the mouth crop that the encoder sees; the eyes crop is half as high


@dataclass(frozen=True)
class RendererShape:
    """Sizes of the renderer: latent numbers a frame and fields of each kind."""

    latent: int = 24
    head: int = 16
    face: int = 24
    mouth_flow: int = 16
    mouth_texture: int = 32
    eyes_flow: int = 8
    eyes_texture: int = 12

    @property
    def coefficients(self) -> int:
        return sum(self.split)

    @property
    def split(self) -> tuple[int, ...]:
        """Coefficients of: head, face, mouth flow, mouth texture, eyes flow, eyes texture."""
        return (self.head, self.face, self.mouth_flow, self.mouth_texture, self.eyes_flow, self.eyes_texture)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


class ConvEncoder(nn.Module):
    """Strided convolutions from a picture to one vector."""

    def __init__(self, widths: tuple[int, ...], grid: tuple[int, int], outputs: int):
        super().__init__()
        layers, last = [], 3
        for width in widths:
            layers.append(_conv(last, width, 2))
            last = width
        layers.append(_conv(last, last))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(last * grid[0] * grid[1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class MotionEncoder(nn.Module):
    """E: a frame -> motion latent (B, D). Inputs: picture (B, 3, 128, 128), its mouth crop (B, 3, 64, 64) and eyes
    crop (B, 3, 32, 64), all in 0..1; the crops' places are those of the clip's first frame, so that motion shows."""

    def __init__(self, shape: RendererShape):
        super().__init__()
        self.whole = ConvEncoder((32, 48, 96, 128, 160), (4, 4), 128)
        self.mouth = ConvEncoder((32, 64, 96, 128), (4, 4), 128)
        self.eyes = ConvEncoder((24, 48, 64, 96), (2, 4), 64)
        self.join = nn.Sequential(nn.SiLU(), nn.Linear(320, 192), nn.SiLU(), nn.Linear(192, shape.latent))

    def forward(self, picture: Tensor, mouth: Tensor, eyes: Tensor) -> Tensor:
        parts = [self.whole(picture - 0.5), self.mouth(mouth - 0.5), self.eyes(eyes - 0.5)]
        return self.join(torch.cat(parts, 1))


class UNet(nn.Module):
    """Encoder and decoder with skips."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem = _conv(inputs, widths[0])
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b, 2), _conv(b, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            _conv(b + a, a) for a, b in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features from the coarsest level to the finest."""
        skips = [self.stem(x)]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        features = [skips.pop()]
        for layer in self.up:
            above = F.interpolate(features[-1], scale_factor=2.0, mode="bilinear", align_corners=False)
            features.append(layer(torch.cat([above, skips.pop()], 1)))
        return features


def _window(height: int, width: int) -> Tensor:
    """(1, 1, height, width): one inside, falling smoothly to zero at the border, so that patches have no seam."""

    def ramp(n: int) -> Tensor:
        at = (torch.arange(n) + 0.5) / n
        edge = torch.minimum(at, 1 - at) / 0.15
        return 0.5 - 0.5 * torch.cos(torch.pi * edge.clamp(0, 1))

    return (ramp(height)[:, None] * ramp(width)[None])[None, None]


@dataclass
class Fields:
    """What the portrait network makes of B portraits. Flows are in fractions of the picture's side (x, y);
    textures in 0..1 of full scale.

    head (B, K, 2, 32, 32); face (B, K, 2, 128, 128); mouth (B, Kf * 2 + Kt * 4, 96, 96) and
    eyes (B, Kf * 2 + Kt * 4, 48, 96): flows first, then textures, each red, green, blue (premultiplied) and opacity;
    matte (B, 1, 128, 128): logits of how much of a pixel is the person's; share (B, 1, 192, 192) in 0..1, over the
    mouth box: how far the mouth's texture shows what the mouth holds instead of colours of its own; place (B, 9): where
    the mouth is, so that this can be drawn (see inside.py); sight (B, 2, 10): where the eyes are, see
    outline.Outline; lips (B, 10): where the lips' inner edges are, likewise.
    """

    head: Tensor
    face: Tensor
    mouth: Tensor
    eyes: Tensor
    matte: Tensor
    share: Tensor
    place: Tensor
    sight: Tensor
    lips: Tensor


def with_place(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W): two channels that tell where a pixel lies are added, and the colours centred."""
    height, width = x.shape[-2:]
    y = torch.linspace(-1, 1, height, device=x.device).view(1, 1, -1, 1).expand(len(x), 1, height, width)
    z = torch.linspace(-1, 1, width, device=x.device).view(1, 1, 1, -1).expand(len(x), 1, height, width)
    return torch.cat([x - 0.5, y, z], 1)


class PlaceNetwork(nn.Module):
    """Mouth crops (B, 3, 96, 96) in 0..1 -> where the mouth is (B, 9), see inside.Place. It is a network of its own,
    taught by landmarks (see training/place.py)."""

    #: What is usual, and how far off that a unit of the network's output is.
    USUAL = (0.5, 0.44, 0.34, 0.0, 0.0, 0.055, 0.6, 0.65, 0.03)
    UNIT = (0.03, 0.03, 0.06, 0.04, 0.04, 0.02, 0.15, 0.1, 0.02)

    def __init__(self):
        super().__init__()
        self.body = ConvEncoder((24, 48, 96, 128), (6, 6), len(self.USUAL))
        self.register_buffer("usual", torch.tensor(self.USUAL), persistent=False)
        self.register_buffer("unit", torch.tensor(self.UNIT), persistent=False)

    def forward(self, mouth: Tensor) -> Tensor:
        return self.usual + self.unit * self.body(mouth - 0.5).float()


class LipsNetwork(PlaceNetwork):
    """Mouth crops (B, 3, 96, 96) in 0..1 -> where the inner edges of its lips are (B, 10), see outline.Outline."""

    USUAL = (0.507, 0.447, 0.380, 0.0, 0.006, 0.0, 0.088, 0.080, 0.0, -0.199)
    UNIT = (0.020, 0.019, 0.066, 0.045, 0.073, 0.078, 0.204, 0.067, 0.065, 0.175)


class SightNetwork(nn.Module):
    """Eyes crops (B, 3, 48, 96) in 0..1 -> where the eyes are (B, 2, 10), see Outline, that on the left of the picture
    first. A network of its own, as PlaceNetwork."""

    #: As PlaceNetwork's.
    USUAL = (
        (0.316, 0.275, 0.164, 0.0, 0.205, 0.007, -0.243, 0.112, -0.103, -0.119),
        (0.684, 0.275, 0.164, 0.0, 0.205, -0.007, -0.243, 0.112, 0.103, -0.119),
    )
    UNIT = (0.016, 0.013, 0.015, 0.014, 0.07, 0.04, 0.13, 0.026, 0.033, 0.065)

    def __init__(self):
        super().__init__()
        self.body = ConvEncoder((24, 48, 96, 128), (3, 6), 20)
        self.register_buffer("usual", torch.tensor(self.USUAL), persistent=False)
        self.register_buffer("unit", torch.tensor(self.UNIT), persistent=False)

    def forward(self, eyes: Tensor) -> Tensor:
        return self.usual + self.unit * self.body(eyes - 0.5).float().view(len(eyes), 2, 10)


class PortraitNetwork(nn.Module):
    """P: portrait (B, 3, 128, 128), mouth crop (B, 3, 96, 96), eyes crop (B, 3, 48, 96), in 0..1 -> Fields."""

    #: Flows start small; textures start large, or they would sleep: their coefficients are small already.
    FLOW_SCALE, TEXTURE_SCALE = 0.02, 10.0

    def __init__(self, shape: RendererShape):
        super().__init__()
        self.shape = shape
        widths = (24, 48, 96, 144, 192)
        self.whole = UNet(5, widths)
        self.head_out = nn.Conv2d(widths[2], 2 * shape.head, 3, 1, 1)
        self.face_out = nn.Conv2d(widths[0], 2 * shape.face, 3, 1, 1)
        self.matte_out = nn.Conv2d(widths[0], 1, 3, 1, 1)
        self.mouth = UNet(5, (32, 64, 96, 128))
        self.mouth_out = nn.Conv2d(32, 2 * shape.mouth_flow + 4 * shape.mouth_texture, 3, 1, 1)
        self.place, self.sight, self.lips = PlaceNetwork(), SightNetwork(), LipsNetwork()
        self.share_out = nn.Conv2d(32, 1, 3, 1, 1)
        self.eyes = UNet(5, (24, 48, 64, 96))
        self.eyes_out = nn.Conv2d(24, 2 * shape.eyes_flow + 4 * shape.eyes_texture, 3, 1, 1)
        self.register_buffer("mouth_window", _window(MOUTH, MOUTH), persistent=False)
        self.register_buffer("eyes_window", _window(*EYES), persistent=False)

    def _patch(self, features: Tensor, out: nn.Conv2d, window: Tensor, flows: int) -> Tensor:
        x = out(features).float() * window
        return torch.cat([x[:, : 2 * flows] * self.FLOW_SCALE, x[:, 2 * flows :] * self.TEXTURE_SCALE], 1)

    def forward(self, picture: Tensor, mouth: Tensor, eyes: Tensor) -> Fields:
        features = self.whole(with_place(picture))
        mouth_features, eyes_features = self.mouth(with_place(mouth))[-1], self.eyes(with_place(eyes))[-1]
        share = self.share_out(mouth_features).float().sigmoid() * self.mouth_window
        shape, batch = self.shape, len(picture)
        head = self.head_out(features[2]).float().view(batch, shape.head, 2, HEAD_FIELD, HEAD_FIELD) * self.FLOW_SCALE
        face = self.face_out(features[4]).float().view(batch, shape.face, 2, FACE_FIELD, FACE_FIELD) * self.FLOW_SCALE
        return Fields(
            head,
            face,
            self._patch(mouth_features, self.mouth_out, self.mouth_window, shape.mouth_flow),
            self._patch(eyes_features, self.eyes_out, self.eyes_window, shape.eyes_flow),
            self.matte_out(features[4]).float(),
            F.interpolate(share, size=INSIDE, mode="bilinear", align_corners=False),
            self.place(mouth),
            self.sight(eyes),
            self.lips(mouth),
        )


class Gauges(nn.Module):
    """Latent (..., D) -> (..., 2): how far apart lips are, in sides of the mouth's box, and how far eyes are closed (0:
    open as most are, 1: wholly). It is taught by landmarks (see training/gauges.py)."""

    UNIT = (0.05, 1.0)

    def __init__(self, latent: int, width: int = 48):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, len(self.UNIT)))
        self.register_buffer("unit", torch.tensor(self.UNIT), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        return self.body(latent) * self.unit


class Coefficients(nn.Module):
    """h: latent (..., D) -> coefficients (..., C) of all fields, and two gauges."""

    def __init__(self, shape: RendererShape, width: int = 128):
        super().__init__()
        self.linear = nn.Linear(shape.latent, shape.coefficients)
        self.curve = nn.Sequential(
            nn.Linear(shape.latent, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, shape.coefficients),
        )  # fmt: skip
        self.gauges = Gauges(shape.latent)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.cat([self.linear(latent) + self.curve(latent), self.gauges(latent)], -1)


class Renderer(nn.Module):
    """Encoder, portrait network and coefficients together."""

    def __init__(self, shape: RendererShape | None = None):
        super().__init__()
        self.shape = shape or RendererShape()
        self.encoder = MotionEncoder(self.shape)
        self.portrait = PortraitNetwork(self.shape)
        self.coefficients = Coefficients(self.shape)


def away(coefficients: Tensor) -> Tensor:
    """Coefficients (B, 1 + T, C), the portrait's first -> how the others differ from them (B, T, C): the last, which
    tells how far eyes are closed, as a share of how open they are in the portrait."""
    own = coefficients[:, :1]
    off = coefficients[:, 1:] - own
    return torch.cat([off[..., :-1], off[..., -1:] / lids.left_open(own[..., -1:])], -1)


def opacity(x: Tensor) -> Tensor:
    """Clamp to at most 1, and to a tenth below zero: hardly anything there, but a slope to learn from."""
    return torch.maximum(0.1 * x, x.clamp(max=1.0))


def sample(field: Tensor, points: Tensor, padding: str = "border") -> Tensor:
    """field (N, C, H, W) at points (N, M, 2) in 0..1 of it -> (N, M, C), bilinear, pixel centres at half pixels."""
    grid = (points * 2 - 1)[:, None]
    return F.grid_sample(field, grid, mode="bilinear", padding_mode=padding, align_corners=False)[:, :, 0].mT


@dataclass
class Layers:
    """A portrait taken apart. front (N, 4, H, W): what the person adds to the picture, and how much of the background
    shows through (1 - matte); back (N, 3, H, W): the background, filled in where the person was."""

    front: Tensor
    back: Tensor

    def __getitem__(self, index) -> "Layers":
        return Layers(self.front[index], self.back[index])


def fill(picture: Tensor, known: Tensor) -> Tensor:
    """picture (N, 3, S, S), S a power of two, with what is not known (N, 1, S, S) in 0..1 filled in smoothly from what
    is around it (push-pull, Gortler et al. 1996)."""
    if picture.shape[-1] == 1:
        return picture
    weight = F.avg_pool2d(known, 2)
    coarse = F.avg_pool2d(picture * known, 2) / weight.clamp(min=1e-4)
    coarse = fill(coarse, (weight * 4).clamp(max=1))
    coarse = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    return picture * known + coarse * (1 - known)


def layers(picture: Tensor, matte: Tensor) -> Layers:
    """Picture (N, 3, S, S) and its matte (N, 1, S, S) in 0..1 -> Layers from which the picture at rest comes back, but
    for what is darker than the background filled in around the person. That is smooth here: what it says is nearer, in
    the mean, to what film shows there than the mirror image that people are shown (see matte.py)."""
    grown = F.max_pool2d(matte, 2 * (picture.shape[-1] // 32) + 1, 1, picture.shape[-1] // 32)
    back = fill(picture, 1 - (grown * 1.5).clamp(max=1))
    return Layers(torch.cat([(picture - (1 - matte) * back).clamp(min=0), 1 - matte], 1), back)


def _mix(weights: Tensor, fields: Tensor) -> Tensor:
    """weights (B, T, K), fields (B, K, C, H, W) -> (B * T, C, H, W)."""
    batch, times, _ = weights.shape
    mixed = torch.bmm(weights, fields.flatten(2))
    return mixed.view(batch * times, *fields.shape[2:])


def _mix_patch(weights: Tensor, patch: Tensor, flows: int, textures: int) -> Tensor:
    """Mix a mouth or eyes patch: -> (B * T, 6, H, W), flow first, then texture."""
    height, width = patch.shape[-2:]
    split = weights.shape[-1] - textures
    flow = patch[:, : 2 * flows].view(len(patch), flows, 2, height, width)
    texture = patch[:, 2 * flows :].view(len(patch), textures, 4, height, width)
    return torch.cat([_mix(weights[..., :split], flow), _mix(weights[..., split:], texture)], 1)


@dataclass
class Motion:
    """Fields mixed for B * T frames, ready to be sampled at any points (see the module's formula)."""

    head: Tensor
    face: Tensor
    mouth: Tensor
    eyes: Tensor
    mouth_box: Tensor  # (B * T, 4)
    eyes_box: Tensor
    inside: Tensor  # (B, 5, 192, 192), the same for all frames of a portrait: what the mouth holds, depth, share
    shut: Tensor  # (B, 6, 96, 192), likewise: closed lids, see lids.Lids, and how light their lashes are
    opening: Tensor  # (B * T, 1, 1), of the lips, and
    closure: Tensor  # of the eyes

    def trace(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output points (B * T, M, 2) -> where they come from in the portrait (B * T, M, 2), and the colour
        (B * T, M, 3) and opacity (B * T, M, 1) of the texture there."""
        still = points + sample(self.head, points)
        source = still + sample(self.face, still)
        found = self._patch(self.mouth, self.mouth_box, still)
        source, texture = source + found[..., :2], found[..., 2:] * lips.gain(found[..., 5:])
        held = self._fixed(self.inside, self.mouth_box, still)
        shown = held[..., 4:]
        parted = shown * apart(held[..., 3:4], self.opening)
        texture = torch.cat([texture[..., :3], uncovered(texture[..., 3:], parted)], -1)
        found = self._patch(self.eyes, self.eyes_box, still)
        source = source + found[..., :2]
        shut = self._fixed(self.shut, self.eyes_box, still)
        down, light = lids.come_down(shut[..., 3:4], shut[..., 4:5], self.closure, shut[..., 5:], torch.exp)
        texture = texture + found[..., 2:] * (1 - down) + down * torch.cat([shut[..., :3] * light, down**0], -1)
        # colour is premultiplied: where opacity would go beyond one, the colour must not shine with it
        colour, cover = texture[..., :3] / texture[..., 3:].clamp(min=1), texture[..., 3:]
        return source, colour * (1 - shown) + cover.clamp(0, 1) * shown * held[..., :3], opacity(cover)

    @staticmethod
    def _patch(patch: Tensor, box: Tensor, still: Tensor) -> Tensor:
        """A mixed patch (B * T, C, h, w) at places (B * T, M, 2) on the still head: (B * T, M, C)."""
        return sample(patch, (still - box[:, None, :2]) / box[:, None, 2:], "zeros")

    @staticmethod
    def _fixed(picture: Tensor, box: Tensor, still: Tensor) -> Tensor:
        """The same of a picture of each portrait (B, C, h, w)."""
        at = (still - box[:, None, :2]) / box[:, None, 2:]
        return sample(picture, at.reshape(len(picture), -1, 2), "zeros").reshape(*still.shape[:2], -1)


def mix(
    shape: RendererShape, fields: Fields, weights: Tensor, mouth_box: Tensor, eyes_box: Tensor, held: Tensor,
    shut: Tensor,
) -> Motion:  # fmt: skip
    """Coefficients' differences (B, T, C), see `away`, fields of B portraits, what their mouths hold and its depth
    (B, 4, 192, 192) and their closed lids (B, 6, 96, 192) -> the motion of B * T frames."""
    times = weights.shape[1]
    head, face, mouth_flow, mouth_texture, eyes_flow, eyes_texture, gauges = weights.split((*shape.split, GAUGES), -1)
    opening, closed = gauges.flatten(0, 1)[:, None].split(1, -1)
    return Motion(
        _mix(head, fields.head),
        _mix(face, fields.face),
        _mix_patch(torch.cat([mouth_flow, mouth_texture], -1), fields.mouth, shape.mouth_flow, shape.mouth_texture),
        _mix_patch(torch.cat([eyes_flow, eyes_texture], -1), fields.eyes, shape.eyes_flow, shape.eyes_texture),
        mouth_box.repeat_interleave(times, 0),
        eyes_box.repeat_interleave(times, 0),
        torch.cat([held, fields.share], 1),
        shut,
        opening.clamp(0, WIDEST),
        lids.closure(closed),
    )
