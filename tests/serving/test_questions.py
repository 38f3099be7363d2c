"""Questions as batches: token ids as training makes them, and images that are masked where a question has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dept_vl.serving.questions import Question, batch_of, question_of
from feature_extraction import FeatureStore
from feature_extraction.errors import InputDataError

TEXTS = ("is there any cat ?", "", "red </s> blue", "how many " * 9, " what  is UNKNOWN")


def question(one: Any, text: str, *images: Any) -> Question:
    frame, tokenizer = one.backbone.frame(one.settings.task.cue), one.backbone.tokenizer
    return question_of(one.name, text, images, settings=one.settings.task, frame=frame, tokenizer=tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_those_of_an_example(text: str, make_adapter: Callable[..., Any]) -> None:
    one = make_adapter("one", "task.prefix=is it red ?")
    made = question(one, text)
    example = one.batch(text, (), None)
    assert made.text_ids.tolist() == example.text_ids[0][example.text_mask[0]].tolist()
    assert made.cut == text.startswith("how many how")


def test_a_batch_has_the_most_images_of_any_question_and_masks_the_others(
    make_adapter: Callable[..., Any], store: FeatureStore
) -> None:
    images = [store.read(image_id) for image_id in store.ids[:2]]
    text, vqa, pairs = make_adapter("text"), make_adapter("vqa", task="vqa"), make_adapter("pairs", task="nlvr2")
    batch = batch_of(
        [question(text, "red"), question(vqa, "red", images[0]), question(pairs, "red", *images)], pad_id=0
    )
    assert batch.visual_mask.any(dim=2).tolist() == [[False, False], [True, False], [True, True]]
    assert torch.equal(batch.visual_tokens[2, 1], torch.from_numpy(images[1].features).float())
    assert torch.equal(batch.boxes[1, 0], torch.from_numpy(images[0].boxes))
    assert not batch.visual_tokens[0].any()


def test_a_batch_without_images_has_none(make_adapter: Callable[..., Any]) -> None:
    batch = batch_of([question(make_adapter("one"), "red " * number) for number in (1, 9)], pad_id=0)
    assert (batch.visual_mask.shape, batch.text_ids.shape) == ((2, 0, 0), (2, 16))


def test_other_numbers_of_images_are_refused(make_adapter: Callable[..., Any], store: FeatureStore) -> None:
    image = store.read(store.ids[0])
    message = "2 images were given; adapter 'vqa' is for task vqa, which takes 1"
    with pytest.raises(InputDataError, match=message):
        question(make_adapter("vqa", task="vqa"), "red", image, image)
