"""HDF5 files of other tools, read so that they cannot reach outside themselves."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from feature_extraction.interchange.image_arrays import Unusable, expected_size


def open_hdf5(path: Path) -> h5py.File:
    """The file, to read.

    Raises:
        Unusable: it is no HDF5, damaged or not whole.
    """
    try:
        return h5py.File(path, "r", locking=False)  # locks fail on many network file systems
    except OSError as error:
        raise Unusable(f"no HDF5 file, or damaged ({path.stat().st_size:,} bytes; {error})") from error


def names_in(group: h5py.Group) -> list[str]:
    """The names in a group; bytes that are no UTF-8 become lone surrogates, as in the names of files."""
    return [name.decode("utf-8", errors="surrogateescape") if isinstance(name, bytes) else name for name in group]


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """What stands under a name in a group.

    Raises:
        Unusable: a link to somewhere else, which could be any file of this machine.
        KeyError: nothing does.
    """
    if not _stands_here(group, name):
        raise Unusable(f"{name!r} is a link to another place, which is not followed")
    return group[raw_name(name)]


def is_group(group: h5py.Group, name: str) -> bool:
    """Whether a group of this file stands under a name in a group."""
    return _stands_here(group, name) and isinstance(group[raw_name(name)], h5py.Group)


def features_of(group: h5py.Group) -> h5py.Dataset:
    """The features in a group, not read yet.

    Raises:
        Unusable: there are none, or they are not in this file.
    """
    if "features" not in group:
        raise Unusable(f"no features; found {', '.join(sorted(names_in(group))) or 'nothing'}")
    return _checked(group, "features")


def read_arrays(group: h5py.Group, names: list[str], tokens: int) -> dict[str, np.ndarray]:
    """The arrays of these names, for so many visual tokens.

    Raises:
        Unusable: one is not in this file, is no array of numbers, or is too large.
    """
    arrays = {}
    for name in names:
        dataset = _checked(group, name)
        if name != "features" and dataset.size > expected_size(name, tokens):  # before memory is spent
            raise Unusable(f"{name} have shape {dataset.shape}, with {tokens} visual tokens")
        arrays[name] = np.asarray(dataset[()])
    return arrays


def raw_name(image_id: str) -> bytes:
    """A name as HDF5 stores it; the reverse of ``names_in``."""
    return image_id.encode("utf-8", errors="surrogateescape")


def _stands_here(group: h5py.Group, name: str) -> bool:
    # By h5py's lower level: the upper one knows no names that are not UTF-8.
    return bool(group.id.links.get_info(raw_name(name)).type == h5py.h5l.TYPE_HARD)


def _checked(group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = member(group, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
        raise Unusable(f"{name} is no array of numbers")
    if dataset.external is not None or dataset.is_virtual:
        raise Unusable(f"{name} is kept in another file, which is not followed")
    return dataset
