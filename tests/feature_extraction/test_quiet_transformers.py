from __future__ import annotations

import pytest
from transformers.utils import logging

from feature_extraction.quiet_transformers import quiet


def test_the_library_is_quiet_and_then_as_before() -> None:
    before = logging.get_verbosity()
    with quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == before
    assert logging.is_progress_bar_enabled()


def test_it_speaks_again_after_a_failure() -> None:
    before = logging.get_verbosity()
    with pytest.raises(ZeroDivisionError), quiet():
        _ = 1 / 0
    assert logging.get_verbosity() == before
