"""The edge between lips and what opens between them: as sharp as lips are, though fields are mixed linearly.

A mixture of fields is as soft as the network is unsure where the edge will be, and a soft edge is a shade on the lips.
So the opacity a of the mouth's texture goes through a curve before it covers anything:

    f(a) = THIN min(a, 1) + (1 - THIN) smoothstep(a, RISES)

and its premultiplied colour is scaled as its opacity is. Thin texture, which tints lips, is left in part, and the curve
is nowhere flat below one, so that training can make more of it.
"""

from typing import TypeVar

Array = TypeVar("Array")

THIN = 0.25
RISES = (0.3, 0.8)


def gain(opacity: Array) -> Array:
    """f(a) / a of opacities a: a NumPy array or a torch tensor, whose methods of these names are alike."""
    return THIN / opacity.clip(1, None) + (1 - THIN) * smoothstep(opacity, *RISES) / opacity.clip(RISES[0], None)


def smoothstep(x: Array, since: float, until: float) -> Array:
    """0 up to `since`, 1 from `until` on, and a smooth rise between."""
    along = ((x - since) * (1 / (until - since))).clip(0, 1)
    return along * along * (3 - 2 * along)
