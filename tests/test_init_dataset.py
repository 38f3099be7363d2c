from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dept_vl.command_line import run
from dept_vl.config import load_settings
from dept_vl.extract import main as extract
from dept_vl.init_dataset import main
from dept_vl.own_data.rows import FORMS, read_table
from dept_vl.tasks.task import load_task
from dept_vl.train import main as train
from dept_vl.types import Example

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "own_data.md"
IMAGES = 20
NAMES = ("train", "validation", "test")
SMALL = (
    *("method.budget_length=10", "method.prompt_length=4", "training.steps=2", "training.epochs=null"),
    *("training.evaluate_every=2", "training.checkpoint_every=2", "data.batch_size=2", "data.evaluation_batch_size=3"),
)
TABLES: dict[str, tuple[str, list[str]]] = {
    "vqa": (
        "image,question,answers",
        [
            f"{image}.png,{pair}"
            for image in range(IMAGES)
            for pair in (f"Is it red?,{'no' if image % 4 else 'yes'}", "What color is it?,red|dark red")
        ],
    ),
    "gqa": (
        "image,question,answer",
        [f"{image}.png,Which color?,{'Red' if image % 4 else 'Blue'}" for image in range(IMAGES)],
    ),
    "caption": ("image,captions", [f"{image}.png,A red thing.|Something red {image}" for image in range(IMAGES)]),
    "nlvr2": (
        "left,right,sentence,label",
        [f"{image}.png,{image + 1}.png,There are two,{image % 4 > 0}" for image in range(0, IMAGES, 2)],
    ),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures 0.png, 1.png and so on."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    folder.mkdir()
    source = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(source.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def arguments(photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line for a task's table."""

    def make(task: str, *more: str, rows: list[str] | None = None, output: Path = tmp_path / "mine") -> list[str]:
        header, lines = TABLES[task]
        table = tmp_path / f"{task}.csv"
        table.write_text("\n".join([header, *(lines if rows is None else rows)]) + "\n")
        return [str(table), "--task", task, "--images", str(photos), "--output", str(output), *more]

    return make


Arguments = Callable[..., list[str]]


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """The examples as training reads them."""
    settings = load_settings({"task": task}, [], data={task: folder}).task
    return {name: load_task(settings).read(folder, name) for name in NAMES}


@pytest.mark.parametrize("task", FORMS)
def test_the_task_reads_every_row_once(arguments: Arguments, tmp_path: Path, task: str) -> None:
    main(arguments(task))
    splits = read(tmp_path / "mine", task)
    count = len(TABLES[task][1])
    assert {name: len(examples) for name, examples in splits.items()} == {
        "train": 0.8 * count,
        "validation": 0.1 * count,
        "test": 0.1 * count,
    }
    examples = [example for members in splits.values() for example in members]
    assert all(one.references and one.targets for one in examples)
    assert {image_id for one in examples for image_id in one.image_ids} == {str(number) for number in range(IMAGES)}


def by_image(folder: Path, task: str) -> dict[tuple[str, ...], Example]:
    return {example.image_ids: example for members in read(folder, task).values() for example in members}


def test_questions_of_vqa_come_back_as_asked(arguments: Arguments, tmp_path: Path) -> None:
    main(arguments("vqa"))
    examples = {
        example.example_id: example for members in read(tmp_path / "mine", "vqa").values() for example in members
    }
    first, second = examples["1"], examples["2"]
    assert (first.text, first.image_ids, first.references) == ("Is it red?", ("0",), ("yes",) * 10)
    assert dict(first.targets) == {"yes": 1.0}
    assert first.slices == {"question_type": "is it", "answer_type": "yes/no"}
    assert (second.text, second.references) == ("What color is it?", ("red", "dark red") * 5)
    assert dict(second.targets) == {"red": 1.0, "dark red": 1.0}


def test_answers_of_gqa_are_those_that_a_prediction_can_equal(arguments: Arguments, tmp_path: Path) -> None:
    main(arguments("gqa"))
    example = by_image(tmp_path / "mine", "gqa")["3",]
    assert (example.example_id, example.text, example.references) == ("4", "Which color?", ("red",))


def test_captions_come_back_as_written(arguments: Arguments, tmp_path: Path) -> None:
    main(arguments("caption"))
    for name, examples in read(tmp_path / "mine", "caption").items():
        for example in examples:
            captions = ("A red thing.", f"Something red {example.image_ids[0]}")
            assert (tuple(target.text for target in example.targets) == captions) if name == "train" else True
            assert example.references == captions


def test_statements_come_back_with_their_images_in_order(arguments: Arguments, tmp_path: Path) -> None:
    main(arguments("nlvr2"))
    examples = by_image(tmp_path / "mine", "nlvr2")
    assert set(examples) == {(f"{image}", f"{image + 1}") for image in range(0, IMAGES, 2)}
    assert examples["0", "1"].references == ("false",)
    assert examples["2", "3"].references == ("true",)
    assert {example.text for example in examples.values()} == {"There are two"}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a tiny image backbone with random weights."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    return [f"features.weights={weights}", "features.image_size=32", "features.layer=2", "features.grid=2"]


@pytest.mark.parametrize("task", FORMS)
def test_the_commands_named_at_the_end_go_on_from_there(
    arguments: Arguments,
    tmp_path: Path,
    tower: list[str],
    tiny_t5: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(arguments(task, output=Path("data/mine")))
    extraction, training = (shlex.split(line) for line in capsys.readouterr().err.splitlines()[-2:])
    assert extraction[:3] == ["python", "-m", "dept_vl.extract"]
    assert training[:3] == ["python", "-m", "dept_vl.train"]
    assert extraction[-2:] == ["--features", "efficientnet_lite0"]
    extract([*extraction[3:-1], "timm/test_efficientnet", *tower])
    train([*training[3:], "--backbone", str(tiny_t5), *SMALL])
    assert (tmp_path / "runs" / "mine" / "adapter").is_dir()


def test_statements_on_three_images_need_no_other_setting(arguments: Arguments, tmp_path: Path) -> None:
    rows = [f"{image}|{(image + 1) % 20}|{(image + 2) % 20},Many {image},yes" for image in range(0, 18, 3)]
    path = tmp_path / "three.csv"
    path.write_text(
        "\n".join(
            ["images,sentence,label,split", *(f"{row},{split}" for row, split in zip(rows, NAMES * 2, strict=True))]
        )
    )
    main([str(path), *arguments("nlvr2")[1:]])
    assert load_settings({"task": "nlvr2"}, [], data={"nlvr2": tmp_path / "mine"}).task.images_per_example == 3
    assert len(read(tmp_path / "mine", "nlvr2")["train"][0].image_ids) == 3


def test_what_is_said_at_the_end(arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, photos, output = tmp_path / "vqa.csv", arguments("vqa")[4], tmp_path / "mine"
    assert run(main, arguments("vqa")) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{table}: 40 rows without a fault"
    assert said[1] == (
        "note: 40 questions have fewer than 10 answers, which are repeated in turn up to 10: the official accuracy "
        "counts on so many people"
    )
    assert [line.split("  always")[0] for line in said[2:5]] == [
        "train           32 rows       16 images",
        "validation       4 rows        2 images",
        "test             4 rows        2 images",
    ]
    assert said[5:] == [
        f"Wrote {output}. Next:",
        f"  python -m dept_vl.extract --images {photos} --output {output}.store --features efficientnet_lite0",
        f"  python -m dept_vl.train --task vqa --data {output} --features {output}.store --output runs/mine",
    ]


def test_the_baseline_is_the_score_of_the_most_frequent_training_answer(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n},Red?,{'yes' if n % 4 else 'no'},{NAMES[n // 8]}" for n in range(IMAGES)]
    path = Path(arguments("gqa")[0])
    command = arguments("gqa")
    path.write_text("\n".join(["image,question,answer,split", *rows]))
    main(command)
    sizes = capsys.readouterr().err.splitlines()[1:4]
    assert [line.split("images")[1] for line in sizes] == ['  always "yes": 75.00 %'] * 3


def test_captions_have_no_such_baseline(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments("caption"))
    assert "always" not in capsys.readouterr().err


def test_texts_that_will_be_cut_are_noted(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(["very"] * 30)
    main(
        arguments(
            "gqa", rows=[f"{n},Is it {words if n < 3 else ''} red?,{words if n < 2 else 'yes'}" for n in range(IMAGES)]
        )
    )
    said = capsys.readouterr().err
    assert (
        'note: 3 texts of "question" are longer (up to 34 words) than task.max_text_length=20 tokens, and are cut in '
        "training. A larger max_text_length can stand in task.yaml\n"
    ) in said
    assert 'note: 2 texts of "answer" are longer (up to 30 words) than task.max_target_length=10 tokens' in said


def test_equal_tables_give_equal_bytes(arguments: Arguments, tmp_path: Path) -> None:
    for name in ("first", "second"):
        main(arguments("vqa", output=tmp_path / name))
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second
    assert set(first) == {"train.json", "validation.json", "test.json", "task.yaml"}


def test_the_seed_and_the_shares_make_the_split(arguments: Arguments, tmp_path: Path) -> None:
    for name, more in (("a", []), ("b", ["--seed", "1"]), ("c", ["--split", "0.5,0.5,0"])):
        main(arguments("vqa", *more, output=tmp_path / name))
    images = [{row["img_id"] for row in json.loads((tmp_path / name / "train.json").read_text())} for name in "abc"]
    assert [len(one) for one in images] == [16, 16, 10]
    assert images[0] != images[1]
    assert not (tmp_path / "c" / "test.json").exists()


def test_a_dry_run_says_the_sizes_and_writes_nothing(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments("vqa", "--dry-run"))
    assert capsys.readouterr().err.splitlines()[-1] == "test             4 rows        2 images"
    assert {path.name for path in tmp_path.iterdir()} == {"vqa.csv"}


def test_a_faulty_table_writes_nothing_and_exits_with_3(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, arguments("vqa", rows=["0.png,Why?,because", "99.png,Why?,"])) == 3
    said = capsys.readouterr().err
    assert said.startswith(f'error: {tmp_path / "vqa.csv"}: rows without "answers": 1 (line 3); images that are not in')
    assert {path.name for path in tmp_path.iterdir()} == {"vqa.csv"}


def test_a_folder_of_something_else_is_refused(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert run(main, arguments("vqa")) == 3
    assert f"{tmp_path / 'mine'} exists and is not an empty folder. Give a new folder, or remove that one" in (
        capsys.readouterr().err
    )
    assert run(main, arguments("vqa", output=tmp_path / "vqa.csv")) == 3


def test_what_a_stopped_command_left_is_no_part_of_the_data(arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "train.json").write_text("half")
    (tmp_path / "mine").mkdir()
    main(arguments("gqa"))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        *(f"{name}_questions.json" for name in NAMES),
        "task.yaml",
    }
    assert not (tmp_path / "mine.partial").exists()


def test_shares_beside_a_column_of_splits_are_refused(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments("gqa", "--split", "0.8,0.1,0.1")
    Path(command[0]).write_text("image,question,answer,split\n0,Why?,so,train\n")
    assert run(main, command) == 2
    assert (
        f"--split is given, but {tmp_path / 'gqa.csv'} has a column that says the split. Leave out one"
        in capsys.readouterr().err
    )


def test_wrong_shares_are_told_before_anything_is_read(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, arguments("vqa", "--split", "0.8", rows=[])) == 2
    assert "--split is '0.8'. It is three shares" in capsys.readouterr().err


def test_an_unknown_task_is_refused_with_those_that_there_are(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments("vqa"), "--task", "okvqa"]
    assert run(main, command) == 2
    assert "argument --task: invalid choice: 'okvqa'" in capsys.readouterr().err


def code_blocks() -> list[tuple[str, str]]:
    """The language and the content of each block of code in the documentation."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENTATION.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_tables_of_the_documentation_are_sound(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("0001.jpg", "0002.jpg"):
        (tmp_path / "photos" / name).touch()
    tables = [content for language, content in code_blocks() if not language]
    for content, task, count in zip(tables, ("vqa", "caption", "nlvr2"), (2, 2, 1), strict=True):
        path = tmp_path / f"table{'.jsonl' if content.startswith('{') else '.csv'}"
        path.write_text(content)
        assert len(read_table(path, task, tmp_path / "photos").rows) == count


def test_the_commands_of_the_documentation_are_those_that_are_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (content for language, content in code_blocks() if language == "bash")
    first, *others = block.splitlines()
    rows = [dict(zip(("image", "question", "answers"), line.split(","), strict=True)) for line in TABLES["vqa"][1]]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    main(shlex.split(first)[3:])
    assert [line.strip() for line in capsys.readouterr().err.splitlines()[-2:]] == others
