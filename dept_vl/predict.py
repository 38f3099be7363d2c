"""Answers of a trained run to images and texts at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dept_vl.data.loader import evaluation_batches
from dept_vl.inference import answer_batch, make_dataset
from dept_vl.run_folder import LoadedRun, load_run
from dept_vl.types import Example
from feature_extraction import FeatureStore
from feature_extraction.backbones import Backbone as ImageBackbone
from feature_extraction.backbones import build_backbone
from feature_extraction.differences import refuse_differences
from feature_extraction.errors import InputDataError
from feature_extraction.store.reader import StoredImage


class Predictor:
    """A trained run that takes image files.

    ::

        from dept_vl import Predictor
        predictor = Predictor.from_run("runs/dept")
        predictor.answer("photo.jpg", "what color is the cat?")
    """

    def __init__(self, run: LoadedRun) -> None:
        """Take a loaded run, and build the image backbone that its features, if any, came from.

        Raises:
            IncompatibleError: the image backbone at hand has other weights or preprocessing than the features.
        """
        self._run = run
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        run.model.to(self._device)
        self._images = None if run.store is None else image_backbone_of(run.store)

    @classmethod
    def from_run(cls, folder: str | Path, *, task: str | None = None) -> Predictor:
        """Load the run in a folder that training wrote; see ``load_run`` for what is refused."""
        return cls(load_run(Path(folder), task=task))

    def answer(self, images: str | Path | Sequence[str | Path], text: str) -> str:
        """The answer to a text about an image, or about several, or about none, ``[]``, as the task has it.

        Raises:
            InputDataError: the task takes another number of images.
            ImageRejected: an image cannot be read.
        """
        paths = [Path(images)] if isinstance(images, str | Path) else [Path(image) for image in images]
        settings = self._run.settings
        if len(paths) != settings.task.images_per_example:
            raise InputDataError(
                f"{len(paths)} images were given; task {settings.task.name} takes {settings.task.images_per_example}"
            )
        example = Example(example_id="", text=text, image_ids=tuple(map(str, paths)))
        encoded = None if self._images is None else _Encoded(self._images)
        dataset = make_dataset([example], encoded, self._run.backbone, settings, cache=None)
        batch = next(evaluation_batches(dataset, batch_size=1, bucket_width=settings.data.bucket_width))
        run = self._run
        (answer,) = answer_batch(run.model, batch.to(self._device), run.task, settings)
        return answer


def image_backbone_of(store: FeatureStore, device: torch.device | None = None) -> ImageBackbone:
    """What encodes other images as those of a feature store were, on a device; None: the best there is.

    Raises:
        IncompatibleError: the image backbone at hand has other weights or preprocessing than the store's.
        UsageError, InputDataError: as of ``build_backbone``.
    """
    images = build_backbone(store.settings, device)
    refuse_differences(
        store.identity,
        images.identity(),
        what=f"The image backbone is not the one that {store.path} was extracted with",
        advice="Take the weights and package versions of the extraction, or extract and train again",
    )
    return images


class _Encoded:
    """Reads like a feature store, by encoding the image file whose path is the id."""

    def __init__(self, backbone: ImageBackbone) -> None:
        self.visual_tokens = backbone.visual_tokens
        self.feature_width = backbone.feature_width
        self._backbone = backbone

    def read(self, path: str) -> StoredImage:
        """The visual tokens and boxes of an image file."""
        return self._backbone.encode_file(Path(path))
