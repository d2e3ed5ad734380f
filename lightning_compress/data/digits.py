"""The digits that come with scikit-learn: 1797 images of 8x8 pixels, no download."""

from __future__ import annotations

import numpy as np

from lightning_compress.data.images import ImageData, Pixels


class Digits(ImageData):
    """Handwritten digits, 1 x 8 x 8, ten classes.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (the test part), as
    bundled with scikit-learn. Pixels of 0 to 16 are stretched to 0 to 255.
    """

    name = "digits"

    def read(self) -> Pixels:
        """Read from the installed scikit-learn."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return Pixels(images, bunch.target.astype(np.int64), None, None, "scikit-learn load_digits")
