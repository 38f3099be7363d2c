"""Train a method on a task: ``python -m dept_vl.train --help``."""

from __future__ import annotations

import sys
from pathlib import Path

from dept_vl.command_line import Parser, StopSignal, command_text, paths_by_task, run
from dept_vl.config import layer_names, load_settings
from feature_extraction.errors import UsageError

EXAMPLES = """\
  python -m dept_vl.train --task vqa --data vqa/ --features coco.store --output runs/dept
  python -m dept_vl.train --task vqa --data vqa/ --features coco.store --output runs/prompt --method prompt \\
      --backbone google-t5/t5-base data.batch_size=64 optimizer.prompt_lr=0.3
  python -m dept_vl.train --task vqa,caption --data vqa=vqa/ --data caption=coco/ --features coco.store \\
      --output runs/both tasks.caption.num_beams=1
  python -m dept_vl.train --task cb --data superglue/CB --output runs/cb --shots 16 --init-from runs/mnli"""


def main(arguments: list[str]) -> None:
    """Train as the arguments say; the same arguments again go on from the newest checkpoint."""
    parser = Parser("dept_vl.train", "Train a method on a task of text, or of images in a feature store.", EXAMPLES)
    parser.add_argument(
        "--task",
        required=True,
        metavar="TASK[,TASK]",
        help=f"of: {', '.join(layer_names('task'))}; several, joined by commas, train together",
    )
    for_each = "; of several tasks, once for each: TASK="
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DIR",
        help=f"folder of the official files, or of dept_vl.fetch{for_each}DIR",
    )
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="STORE",
        help=f"what extract wrote, for tasks with images{for_each}STORE",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--method", metavar="NAME", help=f"one of: {', '.join(layer_names('method'))} (default: dept)")
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="t5-mini (default), a Hugging Face id such as google-t5/t5-base or, for text alone, gpt2, or a folder",
    )
    parser.add_argument("--recipe", metavar="NAME", help=f"one of: {', '.join(layer_names('recipe'))}")
    parser.add_argument(
        "--budget", type=int, metavar="N", help="parameters of the method's own, which choose its sizes (method.budget)"
    )
    parser.add_argument("--shots", type=int, metavar="K", help="train on so many examples in all (data.shots)")
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="RUN",
        help="start from a finished run's prompt, A and B (method.init_parts: which)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check settings, data, features and disk; write nothing")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="any setting of configs/base.yaml"
    )
    options = parser.parse_intermixed_args(arguments)
    chosen = {group: getattr(options, group) for group in ("backbone", "method", "task", "recipe")}
    names = list(dict.fromkeys(name.strip() for name in options.task.split(",")))
    data = paths_by_task("--data", options.data, names)
    shortcuts = {
        "method.budget": options.budget,
        "data.shots": options.shots,
        "method.init_from": options.init_from and options.init_from.resolve(),
    }
    given = [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    # A wrong setting is told at once, before torch is loaded.
    settings = load_settings(chosen, [*given, *options.overrides], data=data)
    if list(settings.tasks) != names:
        raise UsageError(f"task={','.join(settings.tasks)}: the tasks of a training are named by --task alone")
    foreign = [override for override in options.overrides if override.startswith("features")]
    if foreign:
        raise UsageError(
            f"{foreign[0]!r}: training takes these settings from the feature store. "
            "Give them to python -m dept_vl.extract"
        )

    pictured = [name for name in names if settings.tasks[name].images_per_example]
    if options.features and not pictured:
        raise UsageError(f"--features is of no use for {', '.join(names)}, which has no images. Leave it out")
    features = paths_by_task("--features", options.features, pictured) if pictured else {}

    from dept_vl.training.run import train_run

    with StopSignal() as stop:
        train_run(
            settings=settings,
            data=data,
            features=features,
            output=options.output,
            command=command_text("dept_vl.train", arguments),
            dry_run=options.dry_run,
            stop=stop,
        )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
