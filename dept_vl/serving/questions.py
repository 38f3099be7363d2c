"""Questions to several adapters as one batch: texts as each one's task reads them, images padded to the most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from dept_vl.data.collate import collate
from dept_vl.data.dataset import Item
from dept_vl.data.tokens import TokenIds, text_row
from dept_vl.settings import TaskSettings
from dept_vl.types import Batch, Frame
from feature_extraction.errors import InputDataError
from feature_extraction.store.layout import StoredImage

TEXT_STEP = 8  # tokens that texts of a batch are padded to a multiple of
NO_IMAGE = StoredImage(np.empty((0, 0), np.float16), np.empty((0, 4), np.float32), np.empty(0, np.bool_))


class Question(NamedTuple):
    """What an adapter is asked."""

    adapter: str
    text_ids: TokenIds
    cut: bool  # the text is longer than the task takes, and its end is left out
    images: tuple[StoredImage, ...]


def question_of(
    adapter: str,
    text: str,
    images: Sequence[StoredImage],
    *,
    settings: TaskSettings,
    frame: Frame,
    tokenizer: PreTrainedTokenizerBase,
) -> Question:
    """A question with its token ids, which are those of ``tokenize_examples``.

    Raises:
        InputDataError: the task takes another number of images.
    """
    refuse_images(adapter, len(images), settings)
    ids = tokenizer(settings.chosen_prefix + text, add_special_tokens=False, verbose=False)["input_ids"]
    return Question(adapter, *text_row(ids, frame, settings.max_text_length), tuple(images))


def refuse_images(adapter: str, given: int, settings: TaskSettings) -> None:
    """See that an adapter is given the images that its task takes.

    Raises:
        InputDataError: it is given more or fewer.
    """
    if given != settings.images_per_example:
        raise InputDataError(
            f"{given} images were given; adapter {adapter!r} is for task {settings.name}, which takes "
            f"{settings.images_per_example}"
        )


def batch_of(questions: Sequence[Question], *, pad_id: int) -> Batch:
    """The questions as one batch, in which images that a question does not have are masked."""
    images = max(len(question.images) for question in questions)
    shown = next((image for question in questions for image in question.images), NO_IMAGE)
    return collate(
        [_item(question, images, shown) for question in questions],
        task="",
        pad_id=pad_id,
        bucket_width=TEXT_STEP,
        max_text_length=max(len(question.text_ids) for question in questions) + TEXT_STEP,
        max_target_length=0,
    )


def _item(question: Question, images: int, shown: StoredImage) -> Item:
    """A question as an item with so many images, each with as many tokens as the one that is ``shown``."""
    nothing = StoredImage(*map(np.zeros_like, shown))
    padded = [*question.images, *[nothing] * (images - len(question.images))]
    features, boxes, mask = (np.stack([*(image[field] for image in padded), nothing[field]])[:-1] for field in range(3))
    return Item("", question.text_ids, features, boxes, mask, np.empty(0, np.int32), 0.0, np.empty(0, np.float32))
