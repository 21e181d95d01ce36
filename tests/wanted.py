"""What a row of logits must hold of those that are wanted."""

from __future__ import annotations

import numpy as np

from russet import _core

OUT = -np.inf


def check_wanted(
    whole: np.ndarray, screened: np.ndarray, wanted: _core.Wanted, allowed: np.ndarray | None = None
) -> None:
    """Every logit that is wanted is there to the bit, as are all that are there."""
    there = screened > OUT
    np.testing.assert_array_equal(screened[there], whole[there])
    allowed = np.full(len(whole), True) if allowed is None else allowed
    of_allowed = np.sort(whole[allowed])[::-1]
    floor = of_allowed[wanted.k - 1] - wanted.margin if len(of_allowed) >= wanted.k else OUT
    assert there[allowed & (whole >= floor)].all()
    assert there[wanted.ids].all()
