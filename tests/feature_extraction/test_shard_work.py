from __future__ import annotations

import pytest

from feature_extraction.errors import InputDataError
from feature_extraction.shard_work import Tolerance
from feature_extraction.store.layout import Rejected


def rejected(count: int) -> list[Rejected]:
    return [Rejected(str(number), f"{number}.jpg", f"{number}.jpg: empty") for number in range(count)]


def tolerance(images: int, fraction: float) -> Tolerance:
    return Tolerance(images=images, fraction=fraction, advice="Mend them")


@pytest.mark.parametrize(
    ("images", "fraction", "most"),
    [
        (1000, 0.0, 0),
        (1000, 0.001, 10),  # never fewer than ten
        (100_000, 0.001, 100),
        (5, 0.001, 4),  # never all
        (1000, 1.0, 999),
    ],
)
def test_a_run_bears_a_share_of_its_images_or_ten(images: int, fraction: float, most: int) -> None:
    tolerance(images, fraction).check(rejected(most))
    with pytest.raises(
        InputDataError,
        match=rf"^{most + 1} of {images:,} images cannot be used; at most \d+ may be so, and not all\. The first: "
        r"0\.jpg: empty.*Mend them, or give a higher --max-rejected-fraction$",
    ):
        tolerance(images, fraction).check(rejected(most + 1))


def test_it_says_where_the_rejected_images_are_listed() -> None:
    with pytest.raises(InputDataError, match=r"All stand in a list\. Mend them, or"):
        tolerance(9, 0.0).check(rejected(1), "All stand in a list. ")


def test_a_usable_image_ends_a_row_of_others() -> None:
    one = tolerance(10_000, 0.5)
    one.count(0, rejected(60))
    one.count(1, rejected(60))
    one.count(0, rejected(99))
    with pytest.raises(InputDataError, match=r"^100 images in a row cannot be used, as when a disk is gone: 0\.jpg: "):
        one.count(0, rejected(1))


def test_who_bears_any_number_bears_them_in_a_row() -> None:
    tolerance(10_000, 1.0).count(0, rejected(9999))
