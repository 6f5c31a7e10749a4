"""The plots of docs/performance.md: python docs/plots.py growth.json, with what `ifmdm bench --growth --json` wrote.

Needs matplotlib, which comes with the extra `evaluate`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
BUDGET_CORE_MS = 500  # of one core, a second of stream


def plot(name: str, across: str, along: Sequence[float], lines: dict[str, Sequence[float]], up: str) -> None:
    """One picture with one line for each entry of `lines`; values begin at zero."""
    figure, axes = pyplot.subplots(figsize=(5, 3), dpi=96, layout="constrained")
    for label, values in lines.items():
        axes.plot(along, values, marker="o" if len(along) < 12 else "", label=label)
    axes.set(xlabel=across, ylabel=up)
    axes.set_ylim(bottom=0)
    if len(along) < 12:
        axes.set_xticks(along)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(frameon=False)
    figure.savefig(HERE / f"performance-{name}.png")
    pyplot.close(figure)


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    sizes, steps, heads = result["sizes"], result["length"]["steps"], result["heads"]
    side = [each["size"] for each in sizes]
    plot("size", "side of the picture, pixels", side,
         {"a second of stream": [each["cpu_ms_per_second"] for each in sizes],
          "its pictures": [each["pictures_ms_per_second"] for each in sizes],
          "budget at 512": [BUDGET_CORE_MS] * len(sizes)}, "ms of one core")  # fmt: skip
    minutes = [step["second"] / 60 for step in steps]
    plot("length", "minutes of stream", minutes,
         {"resident memory, MB": [step["resident_mb"] for step in steps],
          "a second of stream, ms of one core": [step["cpu_ms_per_second"] for step in steps]}, "")  # fmt: skip
    plot("heads", "heads at once", [each["heads"] for each in heads],
         {"cores used": [each["cores_used"] for each in heads],
          "late frames of the worst head, in 10 %": [each["worst_late_percent"] / 10 for each in heads]},
         "")  # fmt: skip


if __name__ == "__main__":
    main()
