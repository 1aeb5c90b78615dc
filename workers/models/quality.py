"""Image quality without a reference: BRISQUE (Mittal, Moorthy and Bovik, IEEE TIP 2012), on the CPU.

The arithmetic and the trained regressor are the `brisque` package's. Two things are replaced here:

- 0.2.0 hands one-element arrays to `float()`, which numpy 2.4 refuses;
- its 7x7 Gaussian runs as a plain two-dimensional convolution, three times per frame, once for nothing. The kernel is
  the product of two lines of seven, and filtering by those takes a fraction of the time.

Scores stay within 0.1 points of the package's own arithmetic (tests/models/test_quality.py). Not closer, because in
exactly flat patches, such as a blown-out sky, the sign of a rounding error decides on which side a pixel is counted.

Half size, and published scores: the authors published two programs, each with a regressor of its own. The MATLAB one
(774 support vectors) halves the picture by `imresize(x, 0.5)`: bicubic with a = -0.5 and anti-aliasing, which is a
kernel of 8 pixels. The C++ one (770, the package's) does it by OpenCV's bicubic with a = -0.75 and no anti-aliasing, a
kernel of 4, and its support vectors show it: where both have one of the same picture, half-size features differ as
these kernels make them differ. So OpenCV's kernel is the right one here, and a "better" one is wrong: over 65
pictures, scores differ from this one's by 7.1 points (at most 25) with MATLAB's kernel, 4.5 (17) by areas, 4.0 (13)
bilinearly. Scores of the MATLAB program and its own regressor, computed again in Python, differ from these by 4.7
points (27). Values of 0 to 255 with a constant of 1, as in MATLAB, are the same as 0 to 1 with 1 / 255, as here.
Weights of grey and what lies beyond the edge (zeros, as in MATLAB) are the package's; the C++ source has others, which
move a score by 1 to 2 points (9).

Within one scene a frame scores worse the more it is blurred, and worse the more noise it has. Levels overlap between
scenes and between the two faults: a strongly blurred frame scores above a moderately noisy one. So the verdict says
how bad, in the words of the project this catalogue comes from (`blurry_at` 50, `noisy_at` 60, both options), and not
which fault it is. Set the thresholds per camera if the verdict matters.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import cv2
import msgspec
import numpy as np

with warnings.catch_warnings():
    # brisque imports `scipy.ndimage.filters`, deprecated since scipy 1.8, and uses nothing from it.
    warnings.filterwarnings("ignore", message=".*scipy.ndimage.filters.*", category=DeprecationWarning)
    from brisque import BRISQUE

from workers.models.base import AnyResult, Input, Spec, require_image
from workers.models.shared.batches import Configured
from zoo.errors import InvalidInput
from zoo.results import Quality

MIN_SIDE = 32  # the 7x7 window has to mean something at half size too

# It computes in double precision, at two sizes: 60 bytes per pixel, 500 MB for a 4K frame. What is larger would not
# stay within a worker's share of the memory.
MAX_PIXELS = 1 << 23

Points = Annotated[float, msgspec.Meta(ge=0, le=100)]


class QualityOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores from which a frame is called blurry, and noisy; 0 to 100, the second not below the first."""

    blurry_at: Points = 50.0
    noisy_at: Points = 60.0

    def __post_init__(self) -> None:
        if not self.blurry_at <= self.noisy_at:
            raise ValueError(f"noisy_at ({self.noisy_at}) is below blurry_at ({self.blurry_at})")


class _Package(BRISQUE):  # type: ignore[misc]
    """The package, made to run on numpy 2.4 and without its needless work."""

    def features(self, gray: np.ndarray) -> np.ndarray:
        """36 numbers: 18 at full size and 18 at half, in the regressor's order."""
        # Without anti-aliasing, which the regressor was trained without.
        half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        both = [*self.calculate_brisque_features(gray), *self.calculate_brisque_features(half)]
        return np.array([np.asarray(value).item() for value in both], np.float64)

    def calculate_mscn_coefficients(self, image: np.ndarray, kernel_size: int = 7, sigma: float = 7 / 6) -> np.ndarray:
        line = cv2.getGaussianKernel(kernel_size, sigma, cv2.CV_64F)

        def blur(plane: np.ndarray) -> Any:
            # Zeros beyond the edge, as the package's convolution has them.
            return cv2.sepFilter2D(plane, cv2.CV_64F, line, line, borderType=cv2.BORDER_CONSTANT)

        mean = blur(image)
        deviation = np.sqrt(np.abs(mean * mean - blur(image * image)))
        normalised: np.ndarray = (image - mean) / (deviation + 1 / 255)
        return normalised


class Brisque:
    """Answers `Quality`. `spec.path` is not used: the regressor is inside the package."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises LoadFailed when the thresholds in config.toml make no sense."""
        self._options = Configured(spec, QualityOptions)
        cv2.setNumThreads(spec.threads)
        self._brisque = _Package(url=False)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """Scores are clamped to 0..100.

        Raises:
            InvalidInput: a frame under 32x32 or over `MAX_PIXELS`, or of one flat colour (a covered lens): it has no
                structure whose naturalness could be judged, and the formula divides nothing by nothing.
        """
        todo = zip(map(require_image, inputs), self._options.of(inputs), strict=True)
        return [self._judge(frame, options) for frame, options in todo]

    def _judge(self, frame: np.ndarray, options: QualityOptions) -> Quality:
        height, width = frame.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise InvalidInput(f"frame: {width}x{height} is too small to judge; {MIN_SIDE}x{MIN_SIDE} is the least")
        if height * width > MAX_PIXELS:
            raise InvalidInput(f"frame: {width}x{height} is too large to judge; at most {MAX_PIXELS} pixels are taken")
        # skimage.color.rgb2gray's weights on 0..1, as in the package.
        gray = cv2.transform(frame.astype(np.float64), np.array([[0.2125, 0.7154, 0.0721]]) / 255)
        if np.ptp(gray) == 0:
            raise InvalidInput("frame: it is one flat colour, so there is no quality to judge; is the lens covered?")
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # Almost flat frames leave a side of a distribution empty: seen below, not worth a warning each.
            warnings.simplefilter("ignore", RuntimeWarning)
            features = self._brisque.features(gray)
        raw = float(self._brisque.calculate_image_quality_score(features)) if np.isfinite(features).all() else np.nan
        if not np.isfinite(raw):
            raise InvalidInput("frame: it is almost one flat colour, so there is no quality to judge")
        score = min(100.0, max(0.0, raw))
        noisy, blurry = score >= options.noisy_at, score >= options.blurry_at
        return Quality(score=score, verdict="noisy" if noisy else "blurry" if blurry else "good")
