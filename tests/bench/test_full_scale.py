from __future__ import annotations

import json
from pathlib import Path

import pytest

from dept_vl.bench.full_scale import main, summary
from feature_extraction import FeatureStore


@pytest.fixture(autouse=True)
def few_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dept_vl.bench.full_scale.VALIDATION_IMAGES", 2)


def test_a_run_is_trained_on_random_data_that_is_kept(
    tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--folder", str(tmp_path), "--images", "6", "--steps", "3", "--backbone", str(tiny_t5)]
    main([*folder, "data.batch_size=2", "method.budget_length=10", "method.prompt_length=4"])
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.endswith(", batch 2, 3 steps")
    assert [row.split("  ")[0] for row in rows] == [
        "median step",
        "examples",
        "waiting for batches",
        "peak GPU memory",
    ]
    store = FeatureStore.open(tmp_path / "store")
    assert (len(store), store.visual_tokens, store.feature_width) == (8, 36, 2048)
    images = json.loads((tmp_path / "data" / "dataset_coco.json").read_text())["images"]
    assert [image["split"] for image in images] == ["train"] * 6 + ["val"] * 2
    assert {len(image["sentences"]) for image in images} == {5}
    (run,) = tmp_path.glob("run-*")
    assert (run / "adapter").is_dir()


def test_the_share_of_waiting_is_that_of_the_log_without_its_first_tenth(tmp_path: Path) -> None:
    rows = [{"step": 1, "seconds": {"update": 50.0, "waiting_for_batch": 50.0}}]
    rows += [{"step": step, "seconds": {"update": 0.19, "waiting_for_batch": 0.01}} for step in range(2, 11)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 10}]))
    lines = summary(tmp_path / "log.jsonl", batch_size=32).splitlines()
    assert lines[0].endswith("batch 32, 9 steps")
    assert lines[1].split() == ["median", "step", "200.0", "ms"]
    assert lines[2].split() == ["examples", "160.0", "/s"]
    assert lines[3].split() == ["waiting", "for", "batches", "5.00", "%", "of", "the", "time"]
