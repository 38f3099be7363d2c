"""A trained run that takes image files answers as its evaluation on stored features does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from dept_vl import Predictor, evaluate_run
from dept_vl.train import main
from feature_extraction import ExtractionSettings, extract_features
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.images.decoding import ImageRejected


def save_vision_model(folder: Path, *, seed: int) -> None:
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=16
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of each split of the toy data."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(4):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"toy_{split}_{number:012d}.png")
    return folder


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "tiny-vit"
    save_vision_model(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained_run(
    pictures: Path,
    vision_model: Path,
    train_arguments: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run on features that were really extracted."""
    folder = tmp_path_factory.mktemp("run")
    settings = ExtractionSettings(backbone=f"hf/{vision_model}", image_size=32, batch_size=4, workers=0)
    extract_features(pictures, folder / "store", settings, say=lambda line: None)
    main(train_arguments(folder / "run", "training.steps=2", store=folder / "store"))
    return folder / "run"


@pytest.fixture
def predictor(trained_run: Path) -> Predictor:
    return Predictor.from_run(trained_run)


def test_it_answers_as_the_evaluation_does(
    predictor: Predictor, trained_run: Path, toy_vqa: Path, pictures: Path, tmp_path: Path
) -> None:
    evaluate_run(trained_run, "test", tmp_path)
    rows = json.loads((tmp_path / "v2_OpenEnded_test_dept_results.json").read_text())
    questions = json.loads((toy_vqa / "v2_OpenEnded_toy_test_questions.json").read_text())["questions"]
    for row, question in zip(rows, questions, strict=True):
        image = pictures / f"toy_test_{question['image_id']:012d}.png"
        assert predictor.answer(image, question["question"]) == row["answer"]


def test_an_image_may_be_given_as_text_as_path_and_in_a_list(predictor: Predictor, pictures: Path) -> None:
    image = pictures / "toy_val_000000000001.png"
    answers = {predictor.answer(form, "what is the color ?") for form in (image, str(image), [image], (str(image),))}
    assert len(answers) == 1


def test_another_number_of_images_than_the_task_takes_is_refused(predictor: Predictor, pictures: Path) -> None:
    image = pictures / "toy_val_000000000001.png"
    with pytest.raises(InputDataError) as raised:
        predictor.answer([image, image], "what is the color ?")
    assert str(raised.value) == "2 images were given; task vqa takes 1"


def test_of_a_run_of_two_tasks_each_answers_with_its_own_number_of_images(
    trained_run: Path, pair_arguments: Callable[..., list[str]], pictures: Path, tmp_path: Path
) -> None:
    main(pair_arguments(tmp_path / "run", "training.steps=2", store=trained_run.parent / "store"))
    image = pictures / "toy_val_000000000001.png"
    assert isinstance(Predictor.from_run(tmp_path / "run", task="vqa").answer(image, "what is the color ?"), str)
    nlvr2 = Predictor.from_run(tmp_path / "run", task="nlvr2")
    assert nlvr2.answer([image, image], "there are two red dog") in ("true", "false")
    with pytest.raises(InputDataError, match=r"^1 images were given; task nlvr2 takes 2$"):
        nlvr2.answer(image, "there are two red dog")
    with pytest.raises(UsageError, match="has several tasks; name one of them, as in --task vqa: vqa, nlvr2"):
        Predictor.from_run(tmp_path / "run")


def test_a_file_that_is_no_image_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(ImageRejected, match=r"x\.png \(10 bytes\): none of the formats JPEG, PNG"):
        predictor.answer(tmp_path / "x.png", "what is the color ?")


def test_the_token_cache_is_left_alone(
    predictor: Predictor, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPT_VL_CACHE", str(tmp_path / "cache"))
    predictor.answer(pictures / "toy_val_000000000001.png", "what is the color ?")
    assert not (tmp_path / "cache").exists()


def test_another_image_backbone_than_that_of_the_features_is_refused(trained_run: Path, vision_model: Path) -> None:
    kept = vision_model.with_name("kept")
    vision_model.rename(kept)
    try:
        save_vision_model(vision_model, seed=1)
        with pytest.raises(IncompatibleError) as raised:
            Predictor.from_run(trained_run)
    finally:
        shutil.rmtree(vision_model)
        kept.rename(vision_model)
    lines = str(raised.value).splitlines()
    assert lines[0] == (f"The image backbone is not the one that {trained_run.parent / 'store'} was extracted with:")
    assert lines[2].split()[0] == "weight_digest"
    assert lines[-1] == ("Take the weights and package versions of the extraction, or extract and train again")
    Predictor.from_run(trained_run)


def test_a_bf16_run_answers(
    trained_run: Path, train_arguments: Callable[..., list[str]], pictures: Path, tmp_path: Path
) -> None:
    settings = ("training.steps=2", "training.precision=bf16")
    main(train_arguments(tmp_path / "run", *settings, store=trained_run.parent / "store"))
    answer = Predictor.from_run(tmp_path / "run").answer(pictures / "toy_val_000000000001.png", "what is the color ?")
    assert isinstance(answer, str)
    (evaluation,) = evaluate_run(tmp_path / "run", "test", tmp_path / "out")
    assert evaluation.scores.metrics["n"] == 7
