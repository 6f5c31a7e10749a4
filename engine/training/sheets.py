"""Contact sheets and curves as pictures, drawn with OpenCV: what a person looks at beside the figures."""

from pathlib import Path

import cv2
import numpy as np

COLUMNS = 8
#: Side of a picture on a sheet.
CELL = 160
_PLOT = 150
_INK = (40, 40, 40)
_GRID = (225, 225, 225)
#: One colour for each curve of a plot, RGB.
COLOURS = ((40, 40, 40), (214, 69, 55), (40, 110, 190), (60, 150, 70), (150, 90, 170), (200, 140, 30))


def even_times(count: int, columns: int = COLUMNS) -> list[int]:
    """Indices of at most `columns` frames at even times, the first and the last among them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(columns, count)).round()})


def contact_sheet(
    title: str, rows: list[tuple[str, list[np.ndarray]]], times: list[float], curves: dict[str, np.ndarray]
) -> np.ndarray:
    """Labelled rows of pictures, their times in seconds, and below a plot of `curves` (over frames)."""
    columns = max(len(pictures) for _, pictures in rows)
    width = columns * CELL
    sheet = [_strip(title, width)]
    for label, pictures in rows:
        sheet.append(_strip(label, width))
        cells = [cv2.resize(p, (CELL, CELL), interpolation=cv2.INTER_AREA) for p in pictures]
        cells += [np.full((CELL, CELL, 3), 255, np.uint8)] * (columns - len(cells))
        sheet.append(np.hstack(cells))
    marks = np.full((16, width, 3), 255, np.uint8)
    for column, time in enumerate(times):
        _write(marks, f"{time:.2f} s", (column * CELL + 4, 12))
    if times:
        sheet.append(marks)
    if curves:
        sheet.append(plot(curves, width, _PLOT))
    return np.vstack(sheet)


def plot(
    curves: dict[str, np.ndarray], width: int, height: int, title: str = "", x0: float = 0.0
) -> np.ndarray:
    """Curves on one axis, a legend above. `x0` is the abscissa of their first values, 1 the step."""
    picture = np.full((height, width, 3), 255, np.uint8)
    top, bottom, left, right = 30 if title else 18, height - 14, 40, width - 8
    values = np.concatenate([np.asarray(curve, float) for curve in curves.values()])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low, high = min(low, 0.0), max(high, low + 1e-3)
    count = max(len(curve) for curve in curves.values())

    def place(index: np.ndarray, value: np.ndarray) -> np.ndarray:
        x = left + (right - left) * index / max(1, count - 1)
        y = bottom - (bottom - top) * (value - low) / (high - low)
        return np.stack([x, y], 1).round().astype(np.int32)

    for level in (low, 0.0, high):
        y = int(place(np.zeros(1), np.array([level]))[0, 1])
        cv2.line(picture, (left, y), (right, y), _GRID, 1)
        _write(picture, f"{level:.2f}", (2, y + 4))
    _write(picture, f"{x0:g}", (left, height - 2))
    _write(picture, f"{x0 + count - 1:g}", (right - 26, height - 2))
    at = left
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        _write(picture, name, (at, top - 6), colour)
        at += 8 * len(name) + 18
        points = np.asarray(curve, float)
        known = np.flatnonzero(np.isfinite(points))
        if len(known):
            cv2.polylines(picture, [place(known, points[known])], False, colour, 1, cv2.LINE_AA)
    if title:
        _write(picture, title, (4, 12))
    return picture


def save(picture: np.ndarray, path: Path) -> None:
    """Write RGB pixels as PNG, or as JPEG if the name says so. Raises OSError where that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise OSError(f"{path}: the picture could not be encoded")
    path.write_bytes(data.tobytes())


def _strip(text: str, width: int) -> np.ndarray:
    strip = np.full((18, width, 3), 255, np.uint8)
    _write(strip, text, (4, 13))
    return strip


def _write(picture: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int] = _INK) -> None:
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no more
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
