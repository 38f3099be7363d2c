"""VL-Adapter's features: a folder with one HDF5 file per image, ``<image id>.h5`` with the key ``<image id>/features``.

The published ones are CLIP grids: [49 2048] for ResNets at 224 pixels, row by row, float16 where a GPU made them. There
are no boxes and no image sizes. Source: ``CLIP-ViL`` extraction scripts in github.com/ylsung/VL_adapter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feature_extraction.interchange.folders import files_by_id, refuse_irregular
from feature_extraction.interchange.hdf5 import features_of, member, names_in, open_hdf5, raw_name, read_arrays
from feature_extraction.interchange.image_arrays import Look, Unusable, announced, look_of, looked, usable
from feature_extraction.interchange.sources import listed
from feature_extraction.shard_work import Stop


class VLAdapterFolder:
    """A folder and its subfolders."""

    grid = True

    def __init__(self, folder: Path, stop: Stop) -> None:
        """List the images and the shapes of their features."""
        self._files = files_by_id(folder, (".h5", ".hdf5"))
        self.looks = {
            image_id: looked(_look, image_id, path) for image_id, path in listed(folder, self._files.items(), stop)
        }

    def place(self, image_id: str) -> str:
        """The file, for the user."""
        return str(self._files[image_id])

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """The features of an image; see ``FeatureSource``."""
        look = announced(self.looks[image_id])
        with open_hdf5(self._files[image_id]) as file:
            return usable(read_arrays(file[raw_name(image_id)], ["features"], look.tokens), look)


def open_source(path: Path, stop: Stop) -> VLAdapterFolder:
    """List the images of a folder."""
    return VLAdapterFolder(path, stop)


def _look(image_id: str, path: Path) -> Look:
    refuse_irregular(path)
    with open_hdf5(path) as file:
        names = names_in(file)
        if image_id not in names:
            raise Unusable(f"expected the key '{image_id}/features', found {', '.join(map(repr, names)) or 'nothing'}")
        features = features_of(member(file, image_id))
        return look_of(features.shape, features.dtype, [])
