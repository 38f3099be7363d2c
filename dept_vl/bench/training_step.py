"""What a training step costs, method beside method: ``python -m dept_vl.bench.training_step --help``."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from dept_vl.command_line import Parser, run

if TYPE_CHECKING:
    from dept_vl.settings import Settings
    from dept_vl.types import Batch

METHODS = ("prompt", "dept", "visual_only", "full")


class Cost(NamedTuple):
    """One method's row."""

    method: str
    encoder_length: int  # S
    milliseconds: float  # median step
    peak_gigabytes: float | None  # on a GPU


def main(arguments: list[str]) -> None:
    """Time steps of all methods in turn, on the GPU where there is one, and print a table."""
    parser = Parser(
        "dept_vl.bench.training_step",
        "Median time of a training step (forward, backward, update) on random data, all methods in one run.",
        "  python -m dept_vl.bench.training_step\n"
        "  python -m dept_vl.bench.training_step --backbone google-t5/t5-base --visual-tokens 36 --width 2048 "
        "training.precision=bf16",
    )
    parser.add_argument("--backbone", default="t5-mini", metavar="NAME", help="text backbone (default: %(default)s)")
    parser.add_argument("--text", type=int, default=20, metavar="T", help="text tokens (default: %(default)s)")
    parser.add_argument("--visual-tokens", type=int, default=36, metavar="V", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=2048, metavar="D", help="of a visual token (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each method (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings, as in training")
    options = parser.parse_intermixed_args(arguments)

    from dept_vl.config import load_settings

    settings = load_settings({"task": "vqa", "backbone": options.backbone}, options.overrides)
    batch = _random_batch(settings, text=options.text, visual_tokens=options.visual_tokens, width=options.width)
    steps = {method: _step(settings, method, batch) for method in METHODS}
    costs = _time(steps, options.steps)
    reference = costs[0].milliseconds
    sys.stdout.write(f"{options.backbone}, {_device()}, {settings.training.precision}, batch {len(batch.text_ids)}\n")
    sys.stdout.write("method        encoder length   ms/step   / prompt   peak GB\n")
    for cost in costs:
        peak = "-" if cost.peak_gigabytes is None else f"{cost.peak_gigabytes:.2f}"
        sys.stdout.write(
            f"{cost.method:<12}{cost.encoder_length:>16}{cost.milliseconds:>10.1f}"
            f"{cost.milliseconds / reference:>11.2f}{peak:>10}\n"
        )


def _random_batch(settings: Settings, *, text: int, visual_tokens: int, width: int) -> Batch:
    import torch

    from dept_vl.types import Batch

    size, images, target = settings.data.batch_size, settings.task.images_per_example, 4
    generator = torch.Generator().manual_seed(0)
    return Batch(
        task="vqa",
        example_ids=tuple(map(str, range(size))),
        text_ids=torch.randint(3, 1000, (size, text), generator=generator),
        text_mask=torch.ones(size, text, dtype=torch.bool),
        visual_tokens=torch.randn(size, images, visual_tokens, width, generator=generator),
        boxes=torch.rand(size, images, visual_tokens, 4, generator=generator),
        visual_mask=torch.ones(size, images, visual_tokens, dtype=torch.bool),
        target_ids=torch.randint(3, 1000, (size, target), generator=generator),
        target_mask=torch.ones(size, target, dtype=torch.bool),
        target_weights=torch.ones(size),
        answer_scores=torch.zeros(size, 0),
    )


def _step(settings: Settings, method: str, batch: Batch) -> Callable[[], int]:
    """A function that makes one training step of a method and returns its encoder length."""
    import torch

    from dept_vl.model.backbone import load_backbone
    from dept_vl.model.build import build_model
    from dept_vl.run_folder import compute_dtype
    from dept_vl.training.optimizer import make_optimizer

    settings = replace(settings, method=replace(settings.method, name=method))
    device = torch.device(_device())
    backbone = load_backbone(settings.backbone, dtype=compute_dtype(settings))
    *_, visual_tokens, width = batch.visual_tokens.shape
    built = build_model(settings, backbone, visual_tokens=visual_tokens, feature_width=width, seed=0)
    model = built.model.to(device).train()
    optimizer = make_optimizer(built.groups, settings.optimizer)
    parameters = [parameter for group in built.groups for parameter in group.parameters.values()]
    here = batch.to(device)
    prompts = model.encoder.prompts().values()  # one, or none
    length = sum(len(one.prompt) for one in prompts) + here.text_ids.shape[1] + here.visual_mask[0].numel()

    def step() -> int:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.training.precision == "bf16"):
            loss = model(here).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return length

    return step


def _time(steps: dict[str, Callable[[], int]], count: int) -> list[Cost]:
    """Time the methods in turn, so that a machine that changes its speed changes it for all."""
    import torch

    on_gpu = torch.cuda.is_available()
    seconds: dict[str, list[float]] = {method: [] for method in steps}
    lengths: dict[str, int] = {}
    peaks: dict[str, float] = {}
    for turn in range(count + 2):
        for method, step in steps.items():
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            started = time.perf_counter()
            lengths[method] = step()
            if on_gpu:
                torch.cuda.synchronize()
                # All models are loaded at once: what counts is what this step adds.
                peaks[method] = (torch.cuda.max_memory_allocated() - before) / 1e9
            if turn >= 2:  # the first steps allocate and choose kernels
                seconds[method].append(time.perf_counter() - started)
    return [
        Cost(method, lengths[method], 1000 * statistics.median(seconds[method]), peaks.get(method)) for method in steps
    ]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
