"""scikit-learn's handwritten digits: 1,797 real images that come with the package."""

from __future__ import annotations

from lnb.demo.problems import TEST_DIGITS, digit_images
from lnb_bench.training.data.splits import ImageSplit
from lnb_bench.training.errors import DataError


def load_digits(*, invert: bool = False) -> tuple[ImageSplit, ImageSplit]:
    """Training (1,437) and test (360) images ``[N, 1, 8, 8]``, pixels in [0, 1] without standardisation.

    The file has its writers in order, so that its last fifth, the test set, is by writers not seen in training.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        images, labels = digit_images()
    except ModuleNotFoundError as error:
        raise DataError("digits: the images come with scikit-learn; `pip install scikit-learn`") from error
    cut = len(images) - TEST_DIGITS
    return (
        ImageSplit(images[:cut], labels[:cut], white=16.0, invert=invert),
        ImageSplit(images[cut:], labels[cut:], white=16.0, invert=invert),
    )
