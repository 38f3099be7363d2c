"""A training run at COCO's true scale on random data, which shows whether anything but the model takes time.

``python -m dept_vl.bench.full_scale --help``
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dept_vl.bench.feature_store import TOKENS, WIDTH, write_store
from dept_vl.command_line import Parser, StopSignal, command_text, run, say
from feature_extraction.durable import write_durably

EXAMPLES = """\
  python -m dept_vl.bench.full_scale --folder /data/bench --backbone t5-base data.workers=4 training.precision=bf16
  python -m dept_vl.bench.full_scale --folder bench --images 500 --steps 5 data.batch_size=8"""

VALIDATION_IMAGES = 100
CAPTION_WORDS = 11  # as many as COCO's captions have on average
WORDS = (
    "a",
    "man",
    "woman",
    "dog",
    "table",
    "street",
    "holding",
    "riding",
    "sitting",
    "on",
    "in",
    "with",
    "the",
    "red",
)


def main(arguments: list[str]) -> None:
    """Write the data unless it is there, train on it, and print what the steps took."""
    parser = Parser(
        "dept_vl.bench.full_scale",
        f"Train captions on a store of random features ({TOKENS} x {WIDTH} of each image), and say how long steps take "
        "and what share of that is waiting for data.",
        EXAMPLES,
    )
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs go; the data is kept")
    parser.add_argument("--images", type=int, default=113_287, help="default: COCO's training images, 17 GB")
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s; the first tenth is not counted")
    parser.add_argument("--backbone", default="t5-mini", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--method", default="dept", metavar="NAME", help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings, as in training")
    options = parser.parse_intermixed_args(arguments)

    from dept_vl.config import load_settings

    data, store = options.folder / "data", options.folder / "store"
    steps = [f"training.steps={options.steps}", "training.epochs=null", "training.log_every=1"]
    # One validation and one checkpoint, at the end, outside the steps that are counted.
    rarely = [f"training.{name}={options.steps}" for name in ("evaluate_every", "checkpoint_every")]
    settings = load_settings(
        {"task": "caption", "backbone": options.backbone, "method": options.method},
        ["task.num_beams=1", *steps, *rarely, *options.overrides],
    )
    ids = [f"COCO_train2014_{number:012d}" for number in range(options.images + VALIDATION_IMAGES)]
    if not (data / "dataset_coco.json").is_file():
        say(f"writing {len(ids):,} images")
        write_store(store, ids)
        write_captions(data, ids)

    from dept_vl.training.run import train_run

    output = options.folder / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    with StopSignal() as stop:
        train_run(
            settings=settings,
            data={"caption": data},
            features={"caption": store},
            output=output,
            command=command_text("dept_vl.bench.full_scale", arguments),
            dry_run=False,
            stop=stop,
        )
    sys.stdout.write(summary(output / "log.jsonl", batch_size=settings.data.batch_size))


def write_captions(folder: Path, ids: Sequence[str]) -> None:
    """Five random captions for each image, in the layout of Karpathy's file."""
    words = random.Random(0)  # noqa: S311 - no secret
    images = [
        {
            "filename": f"{image_id}.jpg",
            "cocoid": number,
            "split": "train" if number < len(ids) - VALIDATION_IMAGES else "val",
            "sentences": [{"raw": " ".join(words.choices(WORDS, k=CAPTION_WORDS))} for _ in range(5)],
        }
        for number, image_id in enumerate(ids)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "dataset_coco.json", json.dumps({"images": images}).encode())


def summary(log: Path, *, batch_size: int) -> str:
    """Median step, throughput and the share of waiting, of the steps of a log but its first tenth."""
    import torch

    from dept_vl.training.loss_log import read_log

    seconds = [record["seconds"] for record in read_log(log) if "seconds" in record]
    seconds = seconds[len(seconds) // 10 :]
    update, waiting = (sum(one[name] for one in seconds) for name in ("update", "waiting_for_batch"))
    step = statistics.median(one["update"] + one["waiting_for_batch"] for one in seconds)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if torch.cuda.is_available() else "not measured"
    return (
        f"{device}, batch {batch_size}, {len(seconds)} steps\n"
        f"median step         {1000 * step:10.1f} ms\n"
        f"examples            {batch_size * len(seconds) / (update + waiting):10.1f} /s\n"
        f"waiting for batches {100 * waiting / (update + waiting):10.2f} % of the time\n"
        f"peak GPU memory     {peak:>13}\n"
    )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
