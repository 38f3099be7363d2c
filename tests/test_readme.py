"""The commands and code of README.md run as they stand, on toy data."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dept_vl.bench.feature_store import write_vl_t5
from feature_extraction import FeatureStore

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
TOY_DATA = REPOSITORY / "tests" / "toy_data" / "vqa"
SMALL = [  # a network and a training that take seconds
    "features.image_size=32",
    "training.steps=2",
    "training.epochs=null",
    "data.batch_size=4",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every ``python -m`` command of the README, in order, without those that leave something out."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python -m") and " ... " not in line]


# Many runs each, or a service: tests/test_plan.py, test_sweep.py, test_figures.py, serving and bench have small ones.
COMPARING = ["dept_vl.plan", "dept_vl.sweep", "dept_vl.figures", "dept_vl.serve", "dept_vl.bench"]


def run(command: list[str]) -> None:
    importlib.import_module(command[2]).main(command[3:])


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_folder: Path) -> Path:
    """A folder with the README's paths, where toy data and tiny networks stand for the real ones."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TOY_DATA, tmp_path / "vqa")
    images = tmp_path / "coco" / "images"
    images.mkdir(parents=True)
    for path in TOY_DATA.glob("*questions.json"):
        content = json.loads(path.read_text())
        subset = content["data_subtype"].replace("test-dev", "test")
        for question in content["questions"]:
            number = question["image_id"]
            picture = Image.new("RGB", (40, 30), (number % 256, number % 251, number % 241))
            picture.save(images / f"COCO_{subset}_{number:012d}.jpg")
    (tmp_path / "google-t5").mkdir()
    backbone_folder.rename(tmp_path / "google-t5" / "t5-base")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "tower.safetensors")
    return tmp_path


def test_the_readme_names_the_commands_in_their_order() -> None:
    assert [command[2] for command in commands()] == [
        "dept_vl.extract",
        "dept_vl.train",
        "dept_vl.evaluate",
        "dept_vl.validate",
        "dept_vl.evaluate",
        "dept_vl.init_dataset",
        "dept_vl.extract",
        "dept_vl.import_features",
        *COMPARING,
    ]


def test_the_readme_runs(user_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract, train, evaluate, validate, score, init_dataset, inspect, import_features, *comparing = commands()
    assert len(comparing) == len(COMPARING)
    tower = ["features.backbone=timm/resnet10t", f"features.weights={user_folder / 'tower.safetensors'}"]
    run([*extract, *tower, SMALL[0], "features.grid=1", "features.workers=0"])
    run([*train, *SMALL[1:]])
    run(evaluate)
    assert (user_folder / "runs/dept/evaluation/test/v2_OpenEnded_mscoco_test2015_dept_results.json").is_file()
    run(validate)
    assert "is a leaderboard file of vqa" in capsys.readouterr().out
    run(["python", "-m", "dept_vl.evaluate", "--run", "runs/dept", "--split", "validation", "--output", "validation"])
    (user_folder / "validation" / "v2_OpenEnded_mscoco_val2014_dept_results.json").rename(user_folder / "results.json")
    shutil.copy(TOY_DATA / "v2_mscoco_val2014_annotations.json", user_folder)
    capsys.readouterr()
    run(score)
    assert "accuracy" in capsys.readouterr().out

    run(inspect)
    assert "timm/resnet10t" in capsys.readouterr().out
    write_vl_t5(user_folder / "train2014_obj36.h5", ["COCO_train2014_000000000009"], np.dtype(np.float32))
    run(import_features)
    assert FeatureStore.open("butd.store").identity["backbone"] == "imported/butd_vg"

    photos = sorted((user_folder / "coco" / "images").iterdir())
    rows = [f"{photo.name},what is it?,a toy" for photo in photos]
    (user_folder / "my.csv").write_text("\n".join(["image,question,answer", *rows]))
    (user_folder / "coco" / "images").rename(user_folder / "photos")
    run(init_dataset)
    assert (user_folder / "data" / "mine" / "task.yaml").is_file()

    shutil.copy(user_folder / "photos" / photos[0].name, user_folder / "photo.jpg")
    (code,) = blocks("python")
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


def test_every_link_of_readme_and_docs_leads_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
