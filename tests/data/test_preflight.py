from __future__ import annotations

import pytest

from dept_vl.data.preflight import check_examples
from dept_vl.types import Example
from feature_extraction.errors import InputDataError
from feature_extraction.store.reader import FeatureStore


def example(name: str, *image_ids: str) -> Example:
    return Example(name, "what?", image_ids)


def message(examples: list[Example], store: FeatureStore | None) -> str:
    with pytest.raises(InputDataError) as caught:
        check_examples(examples, store, "questions.json")
    return str(caught.value)


def test_examples_that_fit_pass(store: FeatureStore) -> None:
    check_examples([example("a", "image-00"), example("b", "image-00"), example("c", "image-10")], store, "")
    check_examples([example("a", "image-00", "image-03")], store, "")
    check_examples([example("a"), example("b")], store, "")
    check_examples([example("a"), example("b")], None, "")


def test_images_without_features_are_all_counted_and_the_first_named(store: FeatureStore) -> None:
    missing = [example(f"q{number}", f"gone-{number % 30}") for number in range(1204)]
    found = message([example("a", "image-00"), *missing], store)
    assert found.startswith(
        f"questions.json: 1,204 of 1,205 examples refer to 30 images without features in {store.path}; "
        "first: 'gone-0', "
    )
    assert "'gone-19'. Run: python -m dept_vl.extract --images DIR --output STORE on a DIR that has them" in found
    assert "'gone-20'" not in found


def test_rejected_images_are_told_apart_with_their_reasons(store: FeatureStore) -> None:
    found = message([example("a", "image-11"), example("b", "image-11"), example("c", "gone")], store)
    assert f"1 of 3 examples refer to 1 images without features in {store.path}; first: 'gone'. " in found
    assert (
        f"2 of 3 examples refer to 1 images that the extraction of {store.path} rejected; first: "
        "'image-11' (image-11.png: truncated). Mend these files and extract into a new store, "
        "or leave their examples out"
    ) in found


def test_duplicate_ids_are_named_with_their_counts(store: FeatureStore) -> None:
    found = message([example("a", "image-00"), example("b", "image-00"), *[example("a", "image-01")] * 2], store)
    assert found == (
        "questions.json: 1 example ids occur more than once; first: 'a' (3 times). Give each example its own id"
    )


def test_differing_numbers_of_images_are_refused(store: FeatureStore) -> None:
    found = message(
        [example("a", "image-00"), example("b", "image-00"), example("c"), example("d", *["image-01"] * 2)], store
    )
    assert found == (
        "questions.json: 2 of 4 examples do not have 1 images like the others; first: 'c' has 0, 'd' has 2. "
        "All examples of a task need the same number of images"
    )


def test_images_without_any_store_are_refused() -> None:
    assert message([example("a", "x"), example("b", "x")], None) == (
        "questions.json: 2 of 2 examples refer to 1 images, but no feature store is given: --features STORE"
    )


def test_no_examples_are_refused(store: FeatureStore) -> None:
    assert message([], store) == "questions.json: there are no examples"


def test_all_kinds_of_faults_are_told_together(store: FeatureStore) -> None:
    found = message([example("a", "gone"), example("a"), example("b", "image-11")], store)
    for part in ("occur more than once", "do not have 1 images", "without features", "rejected"):
        assert part in found
