"""The recipes of the authors' 17 published runs hold the numbers of those runs."""

from __future__ import annotations

import pytest

from dept_vl.config import configs_folder, layer_names, load_settings
from dept_vl.model.budget import solve_budget
from feature_extraction.errors import UsageError

T5_BASE = 768  # hidden size

# m, r, s, prompt rate, low-rank rate, thousands of steps, and a published score
RUNS = {
    "cola": (80, 15, 256, 0.3, 5e-4, 40, "63.79"),
    "sst2": (60, 30, 256, 0.3, 5e-4, 30, "94.15"),
    "mrpc": (60, 30, 256, 0.3, 5e-3, 10, "90.69"),
    "stsb": (60, 30, 256, 0.3, 1e-4, 30, "90.77"),
    "qqp": (60, 30, 256, 0.4, 5e-3, 100, "90.38"),
    "mnli": (60, 30, 256, 0.3, 1e-4, 250, "84.99"),
    "qnli": (60, 30, 256, 0.4, 5e-3, 100, "93.19"),
    "rte": (60, 30, 256, 0.4, 1e-4, 30, "79.14"),
    "boolq": (40, 45, 256, 0.3, 5e-3, 30, "79.33"),
    "cb": (60, 30, 256, 0.4, 1e-4, 30, "92.86"),
    "multirc": (60, 30, 348, 0.3, 5e-3, 30, "74.30"),
    "wic": (60, 30, 256, 0.3, 1e-3, 20, "68.65"),
    "wsc": (60, 30, 256, 0.3, 1e-4, 20, "67.31"),
    "newsqa": (60, 24, 512, 0.4, 1e-4, 200, "64.44"),
    "hotpotqa": (60, 24, 512, 0.4, 1e-4, 250, "76.82"),
    "searchqa": (60, 24, 512, 0.3, 1e-4, 250, "77.63"),
    "nq": (60, 24, 512, 0.3, 1e-4, 300, "73.21"),
}


def test_there_is_a_recipe_for_each_published_run_and_no_other() -> None:
    assert {name for name in layer_names("recipe") if name.startswith("dept_")} == {f"dept_{task}" for task in RUNS}


@pytest.mark.parametrize("task", RUNS)
def test_a_recipe_is_the_published_run(task: str) -> None:
    settings = load_settings({"task": task, "recipe": f"dept_{task}"}, [])
    method, optimizer, training = settings.method, settings.optimizer, settings.training
    assert training.steps is not None
    assert training.steps % 1000 == 0
    assert (
        *(method.prompt_length, method.rank, settings.task.max_text_length),
        *(optimizer.prompt_lr, optimizer.low_rank_lr, training.steps // 1000),
    ) == RUNS[task][:-1]
    assert round(training.steps * optimizer.warmup_fraction) == 500
    assert (optimizer.prompt_weight_decay, optimizer.low_rank_weight_decay, optimizer.clip_norm) == (0, 0, 1)
    assert (training.epochs, training.evaluate_every, training.patience) == (None, 1000, None)
    assert (settings.data.batch_size, settings.task.batch_size, settings.task.template) == (32, None, "dept")
    assert (method.name, method.low_rank_init, method.low_rank_scale) == ("dept", "official", "official")
    assert (method.prompt_init, method.prompt_text) == ("text", "Classify this text is postive or not:")


@pytest.mark.parametrize("task", RUNS)
def test_its_comment_gives_the_published_score_and_the_command(task: str) -> None:
    text = (configs_folder() / "recipe" / f"dept_{task}.yaml").read_text()
    assert f" {RUNS[task][-1]}" in text
    assert f"--task {task} --recipe dept_{task} --backbone t5-base\n" in text


@pytest.mark.parametrize("task", RUNS)
def test_its_sizes_fit_the_budget_of_a_prompt_of_a_hundred_but_multirc_s(task: str) -> None:
    m, r, s, *_ = RUNS[task]
    budget_length = load_settings({"task": task, "recipe": f"dept_{task}"}, []).method.budget_length
    sizes = {"prompt_length": m, "max_text_length": s, "hidden_size": T5_BASE, "rank": r}
    assert budget_length == (104 if task == "multirc" else 100)
    assert solve_budget(budget_length=budget_length, **sizes).rank == r
    if task == "multirc":
        with pytest.raises(UsageError, match=r"79,560 parameters, but l=100 allows 76,800. The largest .* is 27"):
            solve_budget(budget_length=100, **sizes)


@pytest.mark.parametrize("method", ["prompt", "adept", "full"])
def test_the_recipe_leaves_the_method_to_the_command_line(method: str) -> None:
    assert load_settings({"task": "cola", "recipe": "dept_cola", "method": method}, []).method.name == method
