"""What the next steps of training learn from, made while this one learns."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

Drawn = TypeVar("Drawn")


class _Steps(Dataset):
    """A step -> what is drawn for it, for worker processes."""

    def __init__(self, draw: Callable[[int], Drawn]):
        self._draw = draw

    def __getitem__(self, step: int) -> Drawn:
        return self._draw(step)


def ahead(draw: Callable[[int], Drawn], steps: range, workers: int = 0) -> Iterator[Drawn]:
    """What `draw` makes of each step, in their order: made by one thread, which is enough beside a processor that
    learns, or by `workers` processes, for a GPU that would wait for it. The same whatever the workers."""
    if workers > 0:
        yield from DataLoader(_Steps(draw), None, sampler=steps, num_workers=workers)
        return
    with ThreadPoolExecutor(1) as pool:
        upcoming = None
        for step in steps:
            drawn = draw(step) if upcoming is None else upcoming.result()
            upcoming = pool.submit(draw, step + 1) if step + 1 in steps else None
            yield drawn
