"""VL-T5's features: one HDF5 file, a group per image with eight datasets.

::

    <image id>/features [V D] float32, boxes [V 4] float32 in pixels, obj_id, attr_id [V] int64,
               obj_conf, attr_conf [V] float32, img_w, img_h: whole numbers

Source: ``feature_extraction`` of github.com/j-min/VL-T5. An image id with a slash is a group within a group,
as HDF5 reads its names. A ``mask`` [V], which our own export adds for images with fewer regions, is read too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from feature_extraction.errors import InputDataError
from feature_extraction.interchange.hdf5 import (
    features_of,
    is_group,
    member,
    names_in,
    open_hdf5,
    raw_name,
    read_arrays,
)
from feature_extraction.interchange.image_arrays import (
    VL_T5_NAMES,
    Look,
    Unusable,
    announced,
    attempt,
    look_of,
    looked,
    usable,
)
from feature_extraction.interchange.sources import listed
from feature_extraction.shard_work import Stop

DATASETS = ("features", "boxes", *VL_T5_NAMES, "img_w", "img_h", "mask")
_DATASETS = frozenset(DATASETS)


class VLT5File:
    """An open file."""

    grid = False

    def __init__(self, path: Path, stop: Stop) -> None:
        """List the images and the shapes of their features.

        Raises:
            InputDataError: the file cannot be opened.
        """
        self._path = path
        try:
            self._file = open_hdf5(path)
        except Unusable as reason:
            raise InputDataError(f"{path}: {reason}. It may not be whole: get it anew, or check --format") from reason
        self.looks = dict(listed(path, self._images(), stop))

    def place(self, image_id: str) -> str:
        """The group, for the user."""
        return f"{self._path}, group {image_id!r}"

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """The arrays of an image; see ``FeatureSource``."""
        look = announced(self.looks[image_id])
        group = self._file[raw_name(image_id)]
        return usable(read_arrays(group, [name for name in DATASETS if name in group], look.tokens), look)

    def _images(self) -> Iterator[tuple[str, Look | Unusable]]:
        """All groups that are images and not folders of others, at any depth."""
        folders: list[tuple[str, h5py.Group]] = [("", self._file)]
        seen = {_address(self._file)}
        while folders:
            prefix, folder = folders.pop()
            for name in names_in(folder):
                image_id = prefix + name
                try:
                    group = attempt(member, folder, name)
                except Unusable as reason:
                    yield image_id, reason
                    continue
                if not isinstance(group, h5py.Group):
                    continue
                names = set(names_in(group))
                plain = "features" in names and names <= _DATASETS  # as almost all are
                inside = [] if plain else [name for name in names if is_group(group, name)]
                if len(inside) < len(names) or not names:
                    yield image_id, looked(_look, group, names)
                if inside and _address(group) not in seen:  # links can lead round in circles
                    seen.add(_address(group))
                    folders.append((f"{image_id}/", group))


def open_source(path: Path, stop: Stop) -> VLT5File:
    """List the images of a file."""
    return VLT5File(path, stop)


def _look(group: h5py.Group, names: set[str]) -> Look:
    features = features_of(group)
    return look_of(features.shape, features.dtype, names & _DATASETS)


def _address(group: h5py.Group) -> int:
    return int(h5py.h5o.get_info(group.id).addr)
