"""The table of what does not belong together."""

from __future__ import annotations

import pytest

from feature_extraction.differences import refuse_differences
from feature_extraction.errors import IncompatibleError


def test_all_differences_stand_in_one_aligned_table_with_digests_cut() -> None:
    with pytest.raises(IncompatibleError) as raised:
        refuse_differences(
            {"digest": "0123456789abcdef" * 4, "same": 1, "size": 768},
            {"digest": "fedcba9876543210" * 4, "same": 1, "size": 1024},
            what="These do not fit",
            advice="Take others",
        )
    assert str(raised.value) == (
        "These do not fit:\n"
        "  field   expected           got\n"
        "  digest  0123456789abcdef…  fedcba9876543210…\n"
        "  size    768                1024\n"
        "Take others"
    )


def test_equal_records_are_not_refused() -> None:
    refuse_differences({"a": 1, "b": None}, {"b": None, "a": 1}, what="", advice="")


def test_paths_are_shown_whole_since_their_ends_differ() -> None:
    long = "/data/" + "x" * 80
    with pytest.raises(IncompatibleError, match=long + "/a +" + long + "/b\n"):
        refuse_differences({"--data": long + "/a"}, {"--data": long + "/b"}, what="", advice="")
