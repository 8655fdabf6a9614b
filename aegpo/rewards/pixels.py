"""Images as the 8-bit pictures that files, detectors and readers of text take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor


def to_pixels(images: Tensor) -> tuple[npt.NDArray[np.uint8], list[bool]]:
    """Round images to 8 bits and say which of them are whole.

    Args:
        images: Shape (N, 3, H, W), in [0, 1]; values beyond are clipped.

    Returns:
        Pixels, uint8, shape (N, H, W, 3), and for each image whether all its values are finite;
        the pixels of one that is not mean nothing.
    """
    finite: list[bool] = images.isfinite().flatten(1).all(dim=1).tolist()
    pixels = (images.detach().float().clamp(0, 1) * 255).round().nan_to_num().byte()
    return pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy(), finite
