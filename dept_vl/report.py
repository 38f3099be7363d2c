"""A picture of a run, its learning curve and some answers: ``python -m dept_vl.report --help``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept_vl.command_line import Parser, run, say
from feature_extraction.errors import InputDataError, UsageError

if TYPE_CHECKING:
    from dept_vl.types import Example, Prediction
    from feature_extraction.images.decoding import ImageFile

EXAMPLES = "  python -m dept_vl.report --run runs/dept --split test --images data/images"

SHOWN = 8  # answers
RIGHT_FROM = 0.5  # the score of a right answer


def main(arguments: list[str]) -> None:
    """Draw the report of a run's evaluation."""
    parser = Parser(
        "dept_vl.report",
        "Draw the learning curve of a run, and some of the answers that dept_vl.evaluate wrote, into one PNG picture.",
        EXAMPLES,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="folder that dept_vl.train wrote")
    parser.add_argument("--task", metavar="TASK", help="which of the run's tasks, if it has several")
    parser.add_argument("--split", required=True, metavar="SPLIT", help="a split that dept_vl.evaluate has answered")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the source of the images, if there are any, as for dept_vl.extract"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data set, if it has moved since the training")
    parser.add_argument(
        "--evaluation", type=Path, metavar="DIR", help="--output of dept_vl.evaluate (default: RUN/evaluation/SPLIT)"
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="default: report.png among the evaluation's files")
    options = parser.parse_args(arguments)
    path = report_run(
        options.run,
        options.split,
        task=options.task,
        path_png=options.output,
        evaluation=options.evaluation,
        images=options.images,
        data=options.data,
    )
    say(f"Report picture: {path}")


def report_run(
    folder: Path,
    split: str,
    *,
    task: str | None = None,
    path_png: Path | None = None,
    evaluation: Path | None = None,
    images: Path | None = None,
    data: Path | None = None,
) -> Path:
    """Draw the report of a run from the files that its training and the evaluation of a split have left.

    Returns where the picture is: ``path_png``, or report.png among the files of the evaluation.

    Raises:
        InputDataError: the split has not been evaluated, or the images are not those of its examples.
        UsageError: matplotlib is not installed, or the run has no such task.
    """
    from dept_vl.config import settings_from_yaml
    from dept_vl.run_folder import choose_task, data_folder, read_record, task_folder
    from dept_vl.tasks.task import load_task
    from feature_extraction.images.sources import list_images

    record = read_record(folder)
    settings = settings_from_yaml(folder / "config.yaml")
    name = choose_task(folder, settings, task)
    loaded, metric = load_task(settings.tasks[name]), settings.tasks[name].selection_metric
    evaluation = evaluation or task_folder(folder / "evaluation", settings, name) / split
    path_png = path_png or evaluation / "report.png"
    metrics, per_example = (_read_json(evaluation / name, folder, split) for name in ("metrics.json", "scores.json"))
    score = "" if metrics.get(metric) is None else f", {metric} {metrics[metric]:.2f}"
    write_report(
        path_png,
        log_path=folder / "log.jsonl",
        examples=loaded.read(data or data_folder(record, name), split),
        predictions=loaded.read_submission(evaluation / loaded.submission_name(split)),
        per_example={} if loaded.graded else per_example,
        image_files={image.image_id: image for image in list_images(images)} if images else {},
        title=f"{name} {split}{score} ({settings.method.name} on {settings.backbone.name})",
        metric=metric,
        task=name,
    )
    return path_png


def write_report(
    path_png: Path,
    *,
    log_path: Path,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    per_example: Mapping[str, float],
    image_files: Mapping[str, ImageFile],
    title: str,
    metric: str = "accuracy",
    task: str | None = None,
) -> None:
    """Draw the losses and validation scores of a log, and some right and some wrong answers, into one picture.

    Equal input gives an equal picture: the answers are drawn at random, but always the same. ``per_example`` holds
    scores of 0 to 1, or nothing if answers are neither right nor wrong; ``image_files`` maps image ids to files;
    ``metric`` names the validation score, of ``task`` where the log is of several.

    Raises:
        InputDataError: no example has all its images in ``image_files``.
        UsageError: matplotlib is not installed.
    """
    try:
        from dept_vl.report_picture import Answer, draw_report
    except ImportError as error:
        raise UsageError(
            f"The report picture needs matplotlib, which cannot be imported ({error}). Run: pip install 'dept_vl[demo]'"
        ) from error
    from dept_vl.training.loss_log import read_log
    from feature_extraction.durable import write_durably

    right, wrong = _draw(examples, per_example, image_files)
    answers = dict(predictions)
    shown = [
        Answer(
            text=example.text,
            answer=answers.get(example.example_id, ""),
            references=example.references,
            right=_is_right(example, per_example) if example.example_id in per_example else None,
            pictures=tuple(image_files[image_id] for image_id in example.image_ids),
        )
        for example in (*right, *wrong)
    ]
    all_right = sum(_is_right(example, per_example) for example in examples)
    heading = f"{len(shown)} of {len(examples):,} answers, drawn at random"
    if per_example:
        heading = (
            f"{len(right)} of the {all_right:,} right answers and {len(wrong)} of the {len(examples) - all_right:,} "
            "wrong ones, drawn at random"
        )
    log = [record for record in read_log(log_path) if record.get("task", task) == task or task is None]
    picture = draw_report(title=title, log=log, metric=metric, heading=heading, answers=shown)
    path_png.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path_png, picture)


def _draw(
    examples: Sequence[Example], per_example: Mapping[str, float], image_files: Mapping[str, ImageFile]
) -> tuple[list[Example], list[Example]]:
    """Some right and some wrong answers, as many of each where there are enough, and of different images."""
    import numpy as np

    drawable = [example for example in examples if all(image_id in image_files for image_id in example.image_ids)]
    if examples and not drawable:
        missing = next(image_id for image_id in examples[0].image_ids if image_id not in image_files)
        raise InputDataError(
            f"None of the {len(examples):,} examples has its images among the {len(image_files):,} images given; the "
            f"first misses {missing!r}. Give those that the features were extracted from: --images DIR"
        )
    drawable.sort(key=lambda example: example.example_id)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(drawable))
    seen: set[tuple[str, ...]] = set()
    drawn: list[Example] = []
    repeated: list[Example] = []
    for example in (drawable[index] for index in order):
        (repeated if example.image_ids and example.image_ids in seen else drawn).append(example)
        seen.add(example.image_ids)
    drawn += repeated
    right = [example for example in drawn if _is_right(example, per_example)]
    wrong = [example for example in drawn if not _is_right(example, per_example)]
    wrong = wrong[: max(SHOWN // 2, SHOWN - len(right))]
    return right[: SHOWN - len(wrong)], wrong


def _is_right(example: Example, per_example: Mapping[str, float]) -> bool:
    return per_example.get(example.example_id, 0.0) >= RIGHT_FROM


def _read_json(path: Path, folder: Path, split: str) -> dict[str, Any]:
    try:
        numbers: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputDataError(
            f"No evaluation of split {split!r}: {path} cannot be read ({error}). "
            f"Run: python -m dept_vl.evaluate --run {folder} --split {split}"
        ) from error
    return numbers


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
