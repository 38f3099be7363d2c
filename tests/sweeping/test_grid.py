"""The grammar of a sweep's settings, and the cells that they make."""

from __future__ import annotations

from pathlib import Path

import pytest

from dept_vl.sweeping.grid import (
    Cell,
    Grid,
    Override,
    Setup,
    backbone_label,
    cells,
    flat_settings,
    read_override,
    read_seeds,
    settings_of,
    setups,
    sweep_arguments,
    train_arguments,
)
from feature_extraction.errors import UsageError

NAMES = ("dept", "lora", "mrpc", "rte", "t5-mini")


def grid(*overrides: str, **changes: object) -> Grid:
    read = tuple(read_override(text, NAMES) for text in overrides)
    sizes = {"methods": ("dept", "lora"), "tasks": ("mrpc", "rte"), "seeds": (0, 1)}
    return Grid(**{**sizes, "data": {"mrpc": Path("m"), "rte": Path("r")}, "overrides": read, **changes})


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("training.steps=3", Override("training.steps", ("3",))),
            ("method.rank=1,2, null", Override("method.rank", ("1", "2", "null"))),
            ("lora:method.rank=4", Override("method.rank", ("4",), ("lora",))),
            ("dept:rte:training.steps=5", Override("training.steps", ("5",), ("dept", "rte"))),
            ("task.splits={train: a, test: b}", Override("task.splits", ("{train: a, test: b}",))),
            ("recipe=dept_rte,easy_vqa", Override("recipe", ("dept_rte", "easy_vqa"))),
            ("method.prompt_text=a=b", Override("method.prompt_text", ("a=b",))),
        ],
    )
    def test_values_and_scope(self, text: str, expected: Override) -> None:
        assert read_override(text, NAMES) == expected
        assert read_override(expected.text, NAMES) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "training.steps",
                "'training.steps' is no setting: write key=value, key=v1,v2, or METHOD:key=value for one",
            ),
            ("training.steps=", "is no setting"),
            ("training.steps=1,,2", "is no setting"),
            (
                "lorra:method.rank=4",
                "is about 'lorra', which is no method, task or backbone of this sweep. Did you mean 'lora'?",
            ),
            ("training.seed=1", "'training.seed=1': this is set by --seeds. Use that"),
            ("method=dept", "this is set by --methods. Use that"),
            ("task.name=rte", "this is set by --tasks. Use that"),
            ("backbone.name=x", "this is set by --backbones. Use that"),
            ("features.grid=2", "training takes these settings from the feature store. Give them to dept_vl.extract"),
            ("optimizer.promt_lr=1", "there is no setting 'optimizer.promt_lr'. Did you mean 'optimizer.prompt_lr'?"),
        ],
    )
    def test_faults(self, text: str, message: str) -> None:
        with pytest.raises(UsageError) as caught:
            read_override(text, NAMES)
        assert message in str(caught.value)


@pytest.mark.parametrize(("text", "seeds"), [("3", (0, 1, 2)), ("0,3,7", (0, 3, 7)), ("5,", (5,)), ("0,", (0,))])
def test_seeds_are_a_count_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert read_seeds(text) == seeds


class TestSetups:
    def test_values_multiply_where_their_scope_says_so(self) -> None:
        found = setups(grid("dept:method.prompt_length=20,40", "dept:mrpc:training.steps=1,2", "training.epochs=null"))
        labels = [(row.task, row.label) for row in found]
        assert labels == [
            *(("mrpc", f"dept prompt_length={m} steps={steps}") for m in (20, 40) for steps in (1, 2)),
            ("mrpc", "lora"),
            *(("rte", f"dept prompt_length={m}") for m in (20, 40)),
            ("rte", "lora"),
        ]

    def test_what_is_said_of_fewer_cells_wins(self) -> None:
        found = setups(grid("mrpc:lora:method.rank=1", "lora:method.rank=2", "method.rank=3,4"))
        ranks = [(row.task, row.method, dict(row.overrides)["method.rank"]) for row in found]
        assert ranks == [
            *(("mrpc", "dept", "3"), ("mrpc", "dept", "4"), ("mrpc", "lora", "1")),
            *(("rte", "dept", "3"), ("rte", "dept", "4"), ("rte", "lora", "2")),
        ]

    def test_a_budget_is_for_all_but_full_and_visual_only(self) -> None:
        found = setups(grid(methods=("dept", "full", "visual_only"), tasks=("rte",), budget=99))
        assert [dict(row.overrides).get("method.budget") for row in found] == ["99", None, None]

    def test_two_rows_in_one_folder_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"Two rows of the sweep would lie in t5-mini/mrpc/dept/prompt_text=a-b: "):
            setups(grid("method.prompt_text=a b,a/b"))

    def test_equal_short_names_are_written_out(self) -> None:
        row = setups(grid("task.batch_size=1,2", "data.batch_size=1,2"))[0]
        assert row.varied == (("task.batch_size", "1"), ("data.batch_size", "1"))

    def test_backbones_are_called_by_their_folders(self, tmp_path: Path) -> None:
        (tmp_path / "my t5").mkdir()
        assert backbone_label(str(tmp_path / "my t5")) == "my-t5"
        assert backbone_label("google-t5/t5-base") == "google-t5-t5-base"

    def test_one_backbone_has_its_settings(self) -> None:
        found = setups(grid("t5-mini:training.steps=1", tasks=("rte",), backbones=("t5-mini", "t5-base")))
        assert [row.overrides for row in found] == [(("training.steps", "1"),)] * 2 + [()] * 2


class TestCells:
    def test_a_seed_comes_after_the_other(self) -> None:
        assert [(cell.setup.label, cell.seed) for cell in cells(grid(tasks=("rte",)))] == [
            *(("dept", 0), ("lora", 0), ("dept", 1), ("lora", 1)),
        ]

    def test_folders_tell_what_is_varied(self) -> None:
        setup = Setup("t5-mini", "rte", "dept", varied=(("rank", "1"), ("steps", "2")))
        assert Cell(setup, 3).folder == Path("t5-mini/rte/dept/rank=1,steps=2-seed3")
        assert Cell(setup._replace(varied=()), 3).folder == Path("t5-mini/rte/dept/seed3")

    def test_its_settings_and_its_command_are_one(self) -> None:
        made = grid("training.steps=7", "training.epochs=null", tasks=("rte",), features={"rte": Path("s")}, budget=50)
        cell = cells(made)[-1]
        settings = settings_of(made, cell)
        assert (settings.method.name, settings.method.budget, settings.training.seed) == ("lora", 50, 1)
        assert flat_settings(settings)["training.steps"] == 7
        assert train_arguments(made, cell, Path("out")) == [
            *("--task", "rte", "--method", "lora", "--backbone", "t5-mini", "--data", "r", "--features", "s"),
            *("--output", "out", "method.budget=50", "training.steps=7", "training.epochs=null", "training.seed=1"),
        ]

    def test_chosen_settings_replace_others(self) -> None:
        setup = Setup("t5-mini", "rte", "dept", (("optimizer.prompt_lr", "1"), ("training.steps", "2")))
        assert setup.with_settings({"optimizer.prompt_lr": "3"}).overrides == (
            *(("optimizer.prompt_lr", "3"), ("training.steps", "2")),
        )

    def test_a_grid_is_written_as_arguments(self) -> None:
        assert sweep_arguments(grid("lora:method.rank=1,2", budget=5), Path("out")) == [
            *("--methods", "dept,lora", "--tasks", "mrpc,rte", "--backbones", "t5-mini", "--seeds", "0,1,"),
            *("--data", "mrpc=m", "--data", "rte=r", "--budget", "5", "--output", "out", "lora:method.rank=1,2"),
        ]
