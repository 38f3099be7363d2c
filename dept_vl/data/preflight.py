"""Whether examples and feature store fit together, before any work is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from feature_extraction.errors import InputDataError

if TYPE_CHECKING:
    from dept_vl.types import Example
    from feature_extraction import FeatureStore

SHOWN = 20  # of each kind of fault; the rest is counted


def check_examples(examples: Sequence[Example], store: FeatureStore | None, where: str) -> None:
    """Refuse examples that cannot be batched or whose images have no features, naming all faults together.

    ``where`` tells the user which examples these are, such as the annotation file. A store of None serves examples
    without images.

    Raises:
        InputDataError: no examples; an example id twice; examples with differing numbers of images; images that the
            store does not hold, those that the extraction rejected told apart.
    """
    faults = ["there are no examples"] if not examples else []
    faults += _duplicates(examples)
    faults += _image_counts(examples)
    faults += _missing_images(examples, store)
    if faults:
        raise InputDataError(f"{where}: " + ". ".join(faults))


def _duplicates(examples: Sequence[Example]) -> Iterator[str]:
    counts = Counter(example.example_id for example in examples)
    twice = [f"{example_id!r} ({count} times)" for example_id, count in counts.items() if count > 1]
    if twice:
        yield f"{len(twice):,} example ids occur more than once; first: {_first(twice)}. Give each example its own id"


def _image_counts(examples: Sequence[Example]) -> Iterator[str]:
    counts = Counter(len(example.image_ids) for example in examples)
    if len(counts) > 1:
        ((usual, _),) = counts.most_common(1)
        others = [f"{e.example_id!r} has {len(e.image_ids)}" for e in examples if len(e.image_ids) != usual]
        yield (
            f"{len(others):,} of {len(examples):,} examples do not have {usual} images like the others; "
            f"first: {_first(others)}. All examples of a task need the same number of images"
        )


def _missing_images(examples: Sequence[Example], store: FeatureStore | None) -> Iterator[str]:
    wanted = {image_id: None for example in examples for image_id in example.image_ids}
    missing = wanted if store is None else {image_id: None for image_id in wanted if image_id not in store}
    if not missing:
        return
    if store is None:
        yield f"{_referring(examples, missing)} images, but no feature store is given: --features STORE"
        return
    reasons = {entry.image_id: f"{entry.file}: {entry.reason}" for entry in store.rejected}
    absent = [image_id for image_id in missing if image_id not in reasons]
    rejected = [image_id for image_id in missing if image_id in reasons]
    if absent:
        yield (
            f"{_referring(examples, absent)} images without features in {store.path}; first: "
            f"{_first(map(repr, absent))}. Run: python -m dept_vl.extract --images DIR --output STORE on a DIR "
            "that has them"
        )
    if rejected:
        yield (
            f"{_referring(examples, rejected)} images that the extraction of {store.path} rejected; first: "
            f"{_first(f'{image_id!r} ({reasons[image_id]})' for image_id in rejected)}. Mend these files and extract "
            "into a new store, or leave their examples out"
        )


def _referring(examples: Sequence[Example], image_ids: Iterable[str]) -> str:
    images = set(image_ids)
    referring = sum(not images.isdisjoint(example.image_ids) for example in examples)
    return f"{referring:,} of {len(examples):,} examples refer to {len(images):,}"


def _first(texts: Iterable[str]) -> str:
    return ", ".join(islice(texts, SHOWN))
