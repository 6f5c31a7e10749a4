"""Figures of merit on pictures and time series: pure functions, no model and no landmarker.

Pictures are (H, W, 3) uint8 RGB; masks are (H, W) bool; a series is a 1-d array with one value a frame.
"""

from collections.abc import Callable

import cv2
import numpy as np

#: PSNR of two equal pictures would be infinite; JSON knows no infinity and means would drown in it.
PSNR_LIMIT = 99.0
#: A series that varies less than this is constant: its correlation with anything is 0, not noise over noise.
STILL = 1e-9

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def luma(picture: np.ndarray) -> np.ndarray:
    """(H, W) float32 in 0..255, BT.601."""
    return picture.astype(np.float32) @ _LUMA


def ssim_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(H, W) structural similarity of two luma pictures in 0..255 (Wang et al. 2004: 11 x 11, sigma 1.5)."""

    def blur(picture: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(picture, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT_101)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    one, other = one.astype(np.float64), other.astype(np.float64)  # variances are differences of near equals
    mean1, mean2 = blur(one), blur(other)
    variance1 = blur(one * one) - mean1**2
    variance2 = blur(other * other) - mean2**2
    covariance = blur(one * other) - mean1 * mean2
    return ((2 * mean1 * mean2 + c1) * (2 * covariance + c2)) / (
        (mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2)
    )


def compare(true: np.ndarray, made: np.ndarray, regions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per region (3,): mean absolute and mean squared error (pictures in 0..1), mean SSIM."""
    # Only what the regions cover is looked at, with the margin that the window of the SSIM reaches into.
    ys, xs = np.nonzero(np.logical_or.reduce(list(regions.values())))
    crop = np.s_[max(0, ys.min() - 6) : ys.max() + 7, max(0, xs.min() - 6) : xs.max() + 7]
    true, made = true[crop], made[crop]
    regions = {name: mask[crop] for name, mask in regions.items()}
    away = (made.astype(np.float32) - true.astype(np.float32)) / 255
    maps = np.stack([np.abs(away).mean(-1), (away**2).mean(-1), ssim_map(luma(true), luma(made))])
    flat = maps.reshape(3, -1)
    return {name: flat @ mask.ravel().astype(flat.dtype) / mask.sum() for name, mask in regions.items()}


def psnr(mean_squared_error: float) -> float:
    """Decibels for pictures in 0..1, at most PSNR_LIMIT."""
    return float(min(PSNR_LIMIT, -10 * np.log10(max(mean_squared_error, 1e-12))))


def laplacian_energy(picture: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared Laplacian of the luma within `mask`: how much fine detail there is."""
    return float((cv2.Laplacian(luma(picture), cv2.CV_32F)[mask] ** 2).mean())


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, in -1..1; 0 where one of the two does not vary."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    one, other = one - one.mean(), other - other.mean()
    scale1, scale2 = np.sqrt((one**2).mean()), np.sqrt((other**2).mean())
    if min(scale1, scale2) < STILL:
        return 0.0
    return float(np.clip((one * other).mean() / (scale1 * scale2), -1, 1))


def lagged_correlations(real: np.ndarray, made: np.ndarray, reach: int) -> np.ndarray:
    """Correlation of `made[t + lag]` with `real[t]` for lag = -reach..reach, each over the frames that
    overlap.

    A positive lag says that the made series comes late. Shape (2 * reach + 1,). Both series have one length,
    longer than reach + 1.
    """
    if len(real) != len(made) or len(real) < reach + 2:
        raise ValueError(
            f"series of {len(real)} and {len(made)} values cannot be compared within {reach} lags"
        )
    return np.array(
        [
            correlation(
                real[max(0, -lag) : len(real) - max(0, lag)], made[max(0, lag) : len(made) - max(0, -lag)]
            )
            for lag in range(-reach, reach + 1)
        ]
    )


def spread(points: np.ndarray) -> float:
    """Root mean square distance of points (n, k, d) from their own means over time."""
    points = points.astype(np.float64)
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(-1).mean()))


def jitter(points: np.ndarray) -> float:
    """Root mean square acceleration (second difference) of points (n, k, d), per frame squared."""
    if len(points) < 3:
        return 0.0
    return float(np.sqrt((np.diff(points.astype(np.float64), 2, axis=0) ** 2).sum(-1).mean()))


def count_blinks(opening: np.ndarray, rate: float) -> int:
    """Dips of the eye opening: below 0.6 of the clip's open eye (its 75th percentile), back above 0.7 of it.

    A dip longer than half a second is no blink (eyes closed, or looking down). Dips cut off by either end
    count.
    """
    opening = np.asarray(opening, np.float64)
    if len(opening) < 3:
        return 0
    open_eye = np.percentile(opening, 75)
    count = length = 0
    for value in [*opening, np.inf]:
        if value < 0.6 * open_eye or (length and value < 0.7 * open_eye):
            length += 1
            continue
        count += 0 < length <= 0.5 * rate
        length = 0
    return count


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the angle between two vectors."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def bootstrap_interval(
    samples: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over clips, the rows of `samples` (n, ...).

    `statistic` takes many resamplings at once, (rounds, n, ...), and returns (rounds,). With fewer than three
    clips there is nothing to resample: both ends are NaN.
    """
    if len(samples) < 3:
        return float("nan"), float("nan")
    rows = np.random.default_rng(seed).integers(0, len(samples), (rounds, len(samples)))
    low, high = np.percentile(statistic(samples[rows]), [2.5, 97.5])
    return float(low), float(high)
