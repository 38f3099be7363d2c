from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from dept_vl.data import resident as module
from dept_vl.data.dataset import ExampleDataset, VisualSource
from dept_vl.data.device import on_device
from dept_vl.data.loader import evaluation_batches, training_batches
from dept_vl.data.resident import ResidentFeatures, load_resident
from dept_vl.types import Batch
from feature_extraction.errors import UsageError
from feature_extraction.store.layout import StoredImage
from feature_extraction.store.reader import FeatureStore

Make = Callable[..., ExampleDataset]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IMAGE_BYTES = 4 * 6 * 2 + 4 * 4 * 4 + 4  # V D of float16, V boxes of float32, V of the mask


class Drawn:
    """Images of random features, of which some tokens are masked."""

    def __init__(self, seed: int, dtype: type[np.floating] = np.float16) -> None:
        self.visual_tokens, self.feature_width = 4, 6
        self._seed, self._dtype = seed, dtype
        self.reads: list[str] = []

    def read(self, image_id: str) -> StoredImage:
        self.reads.append(image_id)
        generator = np.random.default_rng([self._seed, *image_id.encode()])
        features = generator.standard_normal((4, 6)).astype(self._dtype)
        return StoredImage(features, generator.random((4, 4), np.float32), generator.random(4) < 0.7)


def load(*datasets: ExampleDataset, device: torch.device = CPU, setting: str = "on") -> ResidentFeatures | None:
    return load_resident([(one._store, one.examples) for one in datasets], device, setting=setting, talks=True)


def reading_from(dataset: ExampleDataset, source: VisualSource | None) -> ExampleDataset:
    return ExampleDataset(dataset.examples, dataset.tokens, source, task=dataset.task)


def loaded(*datasets: ExampleDataset) -> tuple[ResidentFeatures, list[ExampleDataset]]:
    resident = load(*datasets)
    assert resident is not None
    return resident, [reading_from(one, resident.source(one._store)) for one in datasets]


def batches(dataset: ExampleDataset, workers: int = 0) -> list[Batch]:
    placed = training_batches(dataset, batch_size=12, bucket_width=8, seed=3, workers=workers)
    answered = evaluation_batches(dataset, batch_size=7, bucket_width=8, workers=workers)
    return [*(one.batch for one in islice(placed, 5)), *answered]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.example_ids == other.example_ids
        ours, theirs = one.tensors(), other.tensors()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor.cpu(), theirs[name]), name


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_filled_batches_are_those_of_the_store_bit_for_bit(make_dataset: Make, images: int, dtype: type) -> None:
    plain = make_dataset(50, images=images)
    shown = make_dataset(50)  # so that there is something to load, also beside examples without images
    store = Drawn(0, dtype)
    plain, shown = reading_from(plain, store), reading_from(shown, store)
    resident, (ours, _) = loaded(plain, shown)
    assert_same(list(on_device(iter(batches(ours)), CPU, resident)), batches(plain))


def test_filled_batches_of_a_feature_store_are_its_own(make_dataset: Make) -> None:
    plain = make_dataset(50, images=2)
    resident, (ours,) = loaded(plain)
    for workers in (0, 1):
        assert_same(list(on_device(iter(batches(ours, workers)), CPU, resident)), batches(plain))


def test_features_stay_in_the_store_s_own_type(make_dataset: Make) -> None:
    resident, _ = loaded(make_dataset(50))
    assert resident._features.dtype == torch.float16
    assert resident._features.shape == (11, 4, 6)


def test_batches_carry_rows_and_no_features_until_they_are_filled(make_dataset: Make) -> None:
    resident, (ours,) = loaded(make_dataset(50, images=2))
    for batch in batches(ours):
        size = len(batch.example_ids)
        assert batch.visual_tokens.shape == (size, 2, 0, 6)
        assert batch.boxes.shape == (size, 2, 0, 4)
        assert batch.visual_mask.shape == (size, 2, 0)
        assert batch.image_rows is not None
        assert batch.image_rows.shape == (size, 2)
        assert batch.to(CPU).image_rows is not None
        filled = resident.fill(batch)
        assert filled.image_rows is None
        assert resident.fill(filled) is filled


def test_no_batch_reads_from_the_store(make_dataset: Make) -> None:
    store = Drawn(0)
    _, (ours,) = loaded(reading_from(make_dataset(50), store))
    store.reads.clear()
    assert batches(ours)
    assert store.reads == []


def test_images_are_read_once_in_the_store_s_order_and_a_few_at_a_time(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IMAGES_AT_ONCE", 3)
    store = Drawn(0)
    plain = reading_from(make_dataset(50), store)
    resident, (ours,) = loaded(plain)
    wanted = sorted({image_id for example in plain.examples for image_id in example.image_ids})
    first = wanted[:1]  # read for its size, and for the arrays' types
    assert store.reads == [*first, *first, *wanted]
    assert_same([resident.fill(batch) for batch in batches(ours)], batches(plain))


def test_the_same_name_in_two_stores_means_two_images(make_dataset: Make) -> None:
    examples = make_dataset(50)
    one, other = (reading_from(examples, Drawn(seed)) for seed in (1, 2))
    resident, (ours, theirs) = loaded(one, other)
    assert len(resident._features) == 22
    assert_same([resident.fill(batch) for batch in batches(ours)], batches(one))
    assert_same([resident.fill(batch) for batch in batches(theirs)], batches(other))


def test_only_images_that_examples_use_are_kept(make_dataset: Make, store: FeatureStore) -> None:
    few = make_dataset(3)
    resident, _ = loaded(few, few)
    assert len(resident._features) == 3 < len(store)


def test_other_stores_and_tasks_without_one_stay_as_they_are(make_dataset: Make) -> None:
    resident, _ = loaded(make_dataset(3))
    other = Drawn(0)
    assert resident.source(other) is other
    assert resident.source(None) is None


def test_a_dataset_with_rows_can_be_sent_to_a_process_without_the_features(make_dataset: Make) -> None:
    resident, (ours,) = loaded(make_dataset(50))
    sent = pickle.loads(pickle.dumps(ours))
    assert_same([resident.fill(batch) for batch in batches(sent)], [resident.fill(batch) for batch in batches(ours)])


def test_nothing_is_kept_where_that_is_off_or_there_are_no_images(make_dataset: Make) -> None:
    dataset = make_dataset(50)
    assert load(dataset, setting="off") is None
    assert load(dataset, setting="auto") is None  # on a CPU
    assert load(make_dataset(50, images=0)) is None
    assert load(reading_from(make_dataset(50, images=0), None)) is None


def test_it_is_told_in_one_line(make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(20, longest=5)
    assert load(dataset) is not None
    assert capsys.readouterr().err == (
        "The features of 11 images take 0.00 GB: reading them onto cpu, once for all steps\n"
    )
    load_resident([(dataset._store, dataset.examples)], CPU, setting="on", talks=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("free", "kept"), [(2 * 11 * IMAGE_BYTES, True), (2 * 11 * IMAGE_BYTES - 1, False)])
def test_auto_takes_half_of_a_gpu_s_free_memory_at_most(
    make_dataset: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    kept: bool,
) -> None:
    here = module._load
    monkeypatch.setattr(module, "_free_memory", lambda device: float(free))
    monkeypatch.setattr(module, "_load", lambda images, device: here(images, CPU))
    resident = load(make_dataset(20, longest=5), device=CUDA, setting="auto")
    assert (resident is not None) == kept
    told = capsys.readouterr().err
    if kept:
        assert told == "The features of 11 images take 0.00 GB: reading them onto cuda, once for all steps\n"
    else:
        assert told == (
            "The features of 11 images take 0.00 GB, more than half of the 0.00 GB free on cuda: each batch reads its "
            "own\n"
        )


def test_auto_that_does_without_need_not_be_told(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_free_memory", lambda device: 0.0)
    dataset = make_dataset(20, longest=5)
    assert load_resident([(dataset._store, dataset.examples)], CUDA, setting="auto", talks=False) is None
    assert capsys.readouterr().err == ""


def test_on_with_too_little_memory_says_how_much_is_needed(make_dataset: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free_memory", lambda device: 11.0 * IMAGE_BYTES - 1)
    with pytest.raises(UsageError) as caught:
        load(make_dataset(20, longest=5))
    assert str(caught.value) == (
        "The features of 11 images take 0.00 GB, but cpu has 0.00 GB free, and data.resident_features is 'on'. Set "
        "data.resident_features to auto or off, and each batch reads its own, or take a device with more memory"
    )
    monkeypatch.setattr(module, "_free_memory", lambda device: 11.0 * IMAGE_BYTES)
    assert load(make_dataset(50)) is not None


def test_a_host_s_free_memory_is_what_it_can_still_give(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._free_memory(CPU) > 1e6
    monkeypatch.setattr(module, "_MEMORY", module.Path("elsewhere"))
    assert module._free_memory(CPU) == float("inf")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("setting", ["auto", "on"])
def test_batches_filled_on_a_gpu_are_those_of_the_store(make_dataset: Make, setting: str) -> None:
    plain = reading_from(make_dataset(50, images=2), Drawn(0))
    resident = load(plain, device=torch.device("cuda", 0), setting=setting)
    assert resident is not None
    ours = reading_from(plain, resident.source(plain._store))
    assert_same(list(on_device(iter(batches(ours)), torch.device("cuda", 0), resident)), batches(plain))
