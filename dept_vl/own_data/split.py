"""Rows into train, validation and test, so that no image is in two of them."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dept_vl.own_data.rows import OwnRow
from feature_extraction.errors import InputDataError, UsageError

NAMES = ("train", "validation", "test")
DEFAULT = "0.8,0.1,0.1"
NEEDED = NAMES[:2]  # training chooses its best checkpoint by the validation split


def parse_fractions(text: str) -> dict[str, float]:
    """The share of each split, from "0.8,0.1,0.1"; that of test may be 0.

    Raises:
        UsageError: it is no such text.
    """
    try:
        fractions = [float(one) for one in text.split(",")]
    except ValueError:
        fractions = []
    usable = len(fractions) == len(NAMES) and all(0 <= one < 1 for one in fractions) and all(fractions[: len(NEEDED)])
    if not usable or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise UsageError(
            f"--split is {text!r}. It is three shares, of train, validation and test, that add up to 1, as in "
            "0.8,0.1,0.1; only that of test may be 0"
        )
    return {name: fraction for name, fraction in zip(NAMES, fractions, strict=True) if fraction}


def split_as_said(rows: Iterable[OwnRow]) -> dict[str, list[OwnRow]]:
    """The rows by the split that the table gives each of them.

    Raises:
        InputDataError: there is nothing to train on, or to validate with.
    """
    found = {name: [row for row in rows if row.split == name] for name in NAMES}
    empty = [name for name in NEEDED if not found[name]]
    if empty:
        raise InputDataError(
            f"No row has the split {' or '.join(empty)}. Training needs train, and validation to choose its best "
            "checkpoint by; test may be left out. Mark some rows so, or leave out the column: rows are then split by "
            "image"
        )
    return {name: members for name, members in found.items() if members}


def split_by_image(rows: Sequence[OwnRow], fractions: Mapping[str, float], seed: int) -> dict[str, list[OwnRow]]:
    """The rows in splits of about the wanted sizes, all that share an image in one; equal for equal seeds.

    An image's place in the lot depends on its id and the seed alone, not on the order of the table.

    Raises:
        InputDataError: there are too few images for so many splits.
    """
    groups = _connected(rows)
    left = {name: fraction * len(rows) for name, fraction in fractions.items()}
    smallest = min(left.values())

    def order(group: Sequence[OwnRow]) -> tuple[int, str]:
        image_id = min(min(row.image_ids) for row in group)
        drawn = hashlib.sha256(f"{seed} {image_id}".encode()).hexdigest()
        return (-len(group) if len(group) > smallest else 0, drawn)  # what fits only in the larger splits goes first

    chosen: dict[int, str] = {}
    for group in sorted(groups, key=order):
        name = max(left, key=lambda name: left[name])  # the first of equals
        left[name] -= len(group)
        chosen |= {row.number: name for row in group}
    splits = {name: [row for row in rows if chosen[row.number] == name] for name in fractions}
    empty = [name for name, members in splits.items() if not members]
    if empty:
        shares = ", ".join(f"{fraction:g} for {name}" for name, fraction in fractions.items())
        raise InputDataError(
            f"{len(rows):,} rows are too few to split: of the shares {shares}, nothing is left for "
            f"{' and '.join(empty)}. Rows that share an image stay together, which leaves {len(groups):,} groups to "
            "divide. Add rows with other images, change --split, or say the split of each row in a column of that name"
        )
    return splits


def _connected(rows: Iterable[OwnRow]) -> list[list[OwnRow]]:
    """The rows in groups that share no image with each other."""
    parents: dict[str, str] = {}

    def root(image_id: str) -> str:
        parents.setdefault(image_id, image_id)
        while parents[image_id] != image_id:
            parents[image_id] = image_id = parents[parents[image_id]]
        return image_id

    rows = list(rows)
    for row in rows:
        for image_id in row.image_ids:
            parents[root(image_id)] = root(row.image_ids[0])
    groups = defaultdict(list)
    for row in rows:
        groups[root(row.image_ids[0])].append(row)
    return list(groups.values())
