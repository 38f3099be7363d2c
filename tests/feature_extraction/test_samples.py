from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from feature_extraction import FeatureStore, extract_features
from feature_extraction.extract import Plan, plan_extraction
from feature_extraction.images.decoding import ImageFile
from feature_extraction.samples import Trial, draw_contact_sheet, preview, spread, try_out
from feature_extraction.settings import ExtractionSettings


@pytest.fixture(scope="module")
def planned(
    tmp_path_factory: pytest.TempPathFactory,
    make_images: Callable[[Path, int], Path],
    tiny_settings: ExtractionSettings,
) -> Plan:
    """Nine pictures, the fifth damaged."""
    folder = make_images(tmp_path_factory.mktemp("images"), 9)
    (folder / "image_004.png").write_bytes(b"no picture")
    return plan_extraction(folder, tiny_settings)


@pytest.mark.parametrize(
    ("images", "count", "rows"),
    [(9, 3, [0, 4, 8]), (9, 20, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (9, 1, [0]), (100, 4, [0, 33, 66, 99])],
)
def test_samples_come_from_all_over_and_each_once(images: int, count: int, rows: list[int]) -> None:
    files = [ImageFile(str(number), Path(f"{number}.png")) for number in range(images)]
    assert [int(image.image_id) for image in spread(files, count)] == rows


@pytest.mark.parametrize(("workers", "seconds"), [(0, 30.0), (1, 20.0), (4, 10.0)])
def test_workers_decode_beside_the_backbone(workers: int, seconds: float) -> None:
    """One process alone decodes 100 images in 20 s and encodes them in 10 s."""
    assert Trial(4, [], decoding_rate=5.0, encoding_rate=10.0).seconds(100, workers) == pytest.approx(seconds)


def test_a_trial_counts_and_names_what_would_be_rejected(planned: Plan) -> None:
    trial = try_out(planned, batches=5)
    assert trial.images == 9
    assert [entry.image_id for entry in trial.rejected] == ["image_004"]
    assert trial.decoding_rate > 0
    assert trial.encoding_rate > 0


def test_a_trial_of_nothing_usable_has_no_rate_of_the_backbone(
    tmp_path: Path, tiny_settings: ExtractionSettings
) -> None:
    (tmp_path / "a.png").touch()
    trial = try_out(plan_extraction(tmp_path, tiny_settings))
    assert (trial.images, len(trial.rejected), trial.encoding_rate) == (1, 1, 0.0)


def test_a_preview_leaves_out_what_cannot_be_decoded(planned: Plan, tmp_path: Path) -> None:
    drawn = list(preview(planned, tmp_path / "preview", 3))  # the first, the damaged and the last image
    assert [path.name for path in drawn] == ["preview-001.png", "preview-003.png"]
    for path in drawn:
        with Image.open(path) as picture:
            picture.load()


def test_a_contact_sheet_shows_what_is_in_the_store_and_can_still_be_read(
    planned: Plan, tmp_path: Path, make_images: Callable[[Path, int], Path], tiny_settings: ExtractionSettings
) -> None:
    folder = make_images(tmp_path / "images", 5)
    extract_features(folder, tmp_path / "store", tiny_settings, say=lambda line: None)
    store = FeatureStore.open(tmp_path / "store")
    (folder / "image_002.png").write_bytes(b"lost since")
    assert draw_contact_sheet(store, planned.images, tmp_path / "sheet.png") == 4  # image_004 is damaged here
    mine = plan_extraction(folder, tiny_settings).images
    assert draw_contact_sheet(store, mine, tmp_path / "sheet.png") == 4
    strangers = [ImageFile("stranger", folder / "image_000.png")]
    assert draw_contact_sheet(store, strangers, tmp_path / "none.png") == 0
    assert not (tmp_path / "none.png").exists()
