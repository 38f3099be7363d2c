"""Messages to replies: each request by itself up to the model, and all that are in order in one batch of it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dept_vl.command_line import exit_code_of, one_line, say
from dept_vl.model.backbone import load_backbone
from dept_vl.predict import image_backbone_of
from dept_vl.serving.adapter_folder import AdapterFolder
from dept_vl.serving.bank import unknown_adapter
from dept_vl.serving.messages import Ask, Message, Refused, Reply, ServiceSettings
from dept_vl.serving.mixed_model import MixedModel
from dept_vl.serving.questions import refuse_images
from dept_vl.settings import BackboneSettings, Settings, TrainingSettings
from feature_extraction import FeatureStore
from feature_extraction.backbones import Backbone as ImageBackbone
from feature_extraction.errors import InputDataError
from feature_extraction.images.decoding import DEFAULT_DECODING, ImageFile, ImageRejected, decode_image
from feature_extraction.store.layout import StoredImage

DECODERS = 4  # threads; image decoders give the interpreter free

Pixels = np.ndarray  # [height width 3]


class _Prepared(NamedTuple):
    """A question whose adapter, text and images are in order."""

    ask: Ask
    stored: tuple[StoredImage, ...]
    pixels: tuple[Pixels, ...]  # to be encoded


class Answerer:
    """A loaded service, without its HTTP side."""

    def __init__(self, settings: ServiceSettings, device: torch.device) -> None:
        """Load the backbone, open the store, and take in the adapters.

        Raises:
            InputDataError, DamagedError, UsageError, IncompatibleError: as of ``load_backbone`` and ``FeatureStore``.
        """
        self._store = None if settings.features is None else FeatureStore.open(settings.features)
        if self._store is not None:
            self._store.verify()
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        # Batches come in too many shapes to compile the layers for each.
        chosen = Settings(
            backbone=BackboneSettings(name=settings.backbone, compiled=False),
            training=TrainingSettings(precision=settings.precision),
        )
        self._model = MixedModel(
            load_backbone(chosen.backbone, dtype=dtype),
            device=device,
            settings=chosen,
            features=None if self._store is None else self._store.identity,
            few_shapes=device.type == "cuda",
        )
        self._folder = AdapterFolder(settings.adapters, self._model)
        self._folder.refresh()
        self._images, self._why_no_uploads = _image_backbone(self._store, device)
        self._decoders = ThreadPoolExecutor(DECODERS, "images")

    def describe(self) -> str:
        """What is served, in a sentence."""
        names, refused = self._model.names(), self._folder.refused
        some = f"; {len(refused)} are refused" if refused else ""
        uploads = "" if self._images else f"; no uploads: {self._why_no_uploads}"
        notes = "".join(f"; {note}" for note in self._model.notes)
        return f"{len(names):,} adapters in {self._model.bytes / 1e6:,.1f} MB{some}{uploads}{notes}"

    def replies(self, messages: Sequence[Message]) -> list[Reply]:
        """A reply to each message, whatever the others are; adapters are those that the folder has now."""
        asks = [message for message in messages if isinstance(message, Ask)]
        self._folder.refresh(ask.adapter for ask in asks)
        prepared = list(self._decoders.map(self._prepare, asks))
        ready = [one for one in prepared if isinstance(one, _Prepared)]
        answered = iter(self._answered(ready))
        replies = iter([next(answered) if isinstance(one, _Prepared) else one for one in prepared])
        told = [next(replies) if isinstance(message, Ask) else self._listing() for message in messages]
        first = next((place for place, one in enumerate(told) if one.status == 200 and "answer" in one.body), None)
        if first is not None:
            told[first] = told[first]._replace(answered=len(ready))
        return [one._replace(adapters=len(self._model.names()), bytes=self._model.bytes) for one in told]

    def _prepare(self, ask: Ask) -> _Prepared | Reply:
        try:
            return self._checked(ask)
        except Refused as refusal:
            return refusal.reply
        except Exception as error:
            return _fault(error)

    def _checked(self, ask: Ask) -> _Prepared:
        """The question with its images.

        Raises:
            Refused: there is no such adapter or image, or not the images that its task takes.
        """
        if ask.adapter in self._folder.refused:
            reason = self._folder.refused[ask.adapter]
            raise Refused(409, f"Adapter {ask.adapter!r} cannot be served: {reason}")
        if ask.adapter not in self._model:
            raise Refused(404, f"{unknown_adapter(ask.adapter, self._model.names())}. GET /adapters lists them all")
        task = self._model.adapter(ask.adapter).settings
        try:
            refuse_images(ask.adapter, len(ask.uploads) + len(ask.image_ids), task)
        except InputDataError as error:
            raise Refused(400, f"{error}. {_how_to_send(task.images_per_example)}") from None
        if ask.uploads and self._images is None:
            raise Refused(400, f"Images cannot be uploaded: {self._why_no_uploads}. Send 'image_id'")
        stored = tuple(map(self._read, ask.image_ids))
        pixels = tuple(map(self._decode, ask.uploads))
        return _Prepared(ask, stored, pixels)

    def _read(self, image_id: str) -> StoredImage:
        if self._store is None or image_id not in self._store:
            where = "there is no feature store" if self._store is None else f"the store has {len(self._store):,} images"
            raise Refused(404, f"No features for image {image_id!r}: {where}. Send 'image' instead")
        return self._store.read(image_id)

    def _decode(self, upload: bytes) -> Pixels:
        rules = DEFAULT_DECODING if self._images is None else self._images.preparation.rules
        try:
            return decode_image(ImageFile("upload", Path("image"), _Bytes(upload)), rules)
        except ImageRejected as error:
            raise Refused(400, f"The image cannot be used: {str(error).removeprefix('image: upload')}") from None

    def _answered(self, prepared: Sequence[_Prepared]) -> list[Reply]:
        """A reply to each; where the batch fails, as for want of memory, its halves are tried by themselves."""
        if not prepared:
            return []
        try:
            return self._batch_answered(prepared)
        except Exception as error:
            if len(prepared) == 1:
                return [_fault(error)]
            half = len(prepared) // 2
            say(f"A batch of {len(prepared)} failed and is tried again in halves: {type(error).__name__}: {error}")
            return self._answered(prepared[:half]) + self._answered(prepared[half:])

    def _batch_answered(self, prepared: Sequence[_Prepared]) -> list[Reply]:
        encoded = iter(self._encoded([pixels for one in prepared for pixels in one.pixels]))
        questions = [
            self._model.question(one.ask.adapter, one.ask.text, [*one.stored, *(next(encoded) for _ in one.pixels)])
            for one in prepared
        ]
        names = [question.adapter for question in questions]
        answers = self._model.answer(self._model.batch(questions), names)
        return [
            Reply(200, {"answer": answer, "adapter": name, "task": self._task(name), "text_cut": question.cut})
            for answer, name, question in zip(answers, names, questions, strict=True)
        ]

    def _encoded(self, images: Sequence[Pixels]) -> list[StoredImage]:
        """Decoded images as the store would hold them."""
        if not images or self._images is None:
            return []
        found = self._images.encode(images)
        masks = found.get("mask", np.ones((len(images), self._images.visual_tokens), dtype=bool))
        return list(map(StoredImage, found["features"], found["boxes"], masks))

    def _listing(self) -> Reply:
        adapters = [
            {
                "name": name,
                "task": self._task(name),
                "method": self._model.adapter(name).method,
                "images": self._model.adapter(name).settings.images_per_example,
                "bytes": self._model.bytes_of(name),
            }
            for name in sorted(self._model.names())
        ]
        return Reply(200, {"adapters": adapters, "refused": self._folder.refused, "bytes": self._model.bytes})

    def _task(self, name: str) -> str:
        return self._model.adapter(name).settings.name


class _Bytes(NamedTuple):
    """An uploaded image, as a part of a file that there is not."""

    data: bytes

    @property
    def name(self) -> str:
        """What messages call it."""
        return "upload"

    def read(self, path: Path) -> bytes:
        """The encoded image."""
        return self.data


def _image_backbone(store: FeatureStore | None, device: torch.device) -> tuple[ImageBackbone | None, str]:
    """What encodes uploads as the store's images were; or why there are no uploads."""
    if store is None:
        return None, "the service was started without --features"
    try:
        return image_backbone_of(store, device), ""
    except Exception as error:
        if exit_code_of(error) is None:
            raise
        return None, one_line(error)


def _how_to_send(images: int) -> str:
    if not images:
        return "Send neither 'image' nor 'image_id'"
    return "Send it as 'image' or 'image_id'" if images == 1 else f"Send a list of {images} as 'image' or 'image_id'"


def _fault(error: Exception) -> Reply:
    """The reply to a request that failed by no fault of its own; the log says more."""
    traceback.print_exception(error)
    return Reply(500, {"error": f"The service failed on this request ({type(error).__name__}); its log says more"})
