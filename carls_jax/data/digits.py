"""scikit-learn's handwritten digits, split for semi-supervised learning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from carls_jax.errors import InvalidInputError

NUM_CLASSES = 10
IMAGE_SHAPE = (8, 8)


@dataclass(frozen=True)
class DigitsSplit:
    """Holds the digits: n training images, a few of them with labels, and images held out.

    Attributes:
      x: float32 `[n, 64]`, pixels in [0, 1]. The row number is the image's id.
      y: int32 `[n]`, the true labels; training may use those of `labelled` alone.
      labelled: int64 `[num_labelled]`, ids of the images whose labels are known.
      x_test: float32 `[m, 64]`, images that training never sees.
      y_test: int32 `[m]`.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int32]
    labelled: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int32]

    @property
    def known_labels(self) -> NDArray[np.float32]:
        """float32 `[n, 10]`: one-hot rows of the labelled images, zeros elsewhere."""
        known = np.zeros((len(self.x), NUM_CLASSES), np.float32)
        known[self.labelled, self.y[self.labelled]] = 1.0
        return known


def load(
    *, seed: int, num_labelled_per_class: int = 2, num_test: int = 500, num_validation: int = 0
) -> DigitsSplit:
    """Loads the 1,797 images that come with scikit-learn.

    The test images are the same for every seed. With `num_validation`, so many of the other images,
    drawn by the seed, are held out in the test images' place, which are then not touched at all.

    Args:
      seed: Draws the labelled images.
      num_labelled_per_class: Labelled images of each digit.
      num_test: Images held out for the test.
      num_validation: Images held out for choosing hyper-parameters. 0: the test images are given.

    Raises:
      InvalidInputError: A number is out of range.
    """
    images, labels = load_digits(return_X_y=True)
    most = len(images) - num_test - num_validation
    if num_test < 0 or num_validation < 0 or not 1 <= num_labelled_per_class <= most // 20:
        raise InvalidInputError(
            f"num_labelled_per_class={num_labelled_per_class}, num_test={num_test}, "
            f"num_validation={num_validation}: there are {len(images)} images, and at least 1 in "
            "each class must be labelled"
        )
    x, y = (images / 16.0).astype(np.float32), labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    held_out, rest = order[:num_test], order[num_test:]
    rng = np.random.default_rng([7, seed])
    if num_validation:
        rest = rng.permutation(rest)
        held_out, rest = rest[:num_validation], rest[num_validation:]
    labelled = [
        rng.choice(np.flatnonzero(y[rest] == digit), num_labelled_per_class, replace=False)
        for digit in range(NUM_CLASSES)
    ]
    return DigitsSplit(
        x[rest], y[rest], np.concatenate(labelled).astype(np.int64), x[held_out], y[held_out]
    )
