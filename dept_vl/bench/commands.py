"""The options of the benchmarks, and what is printed and written."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

import torch

from dept_vl.bench.infer import infer_rows
from dept_vl.bench.rows import Row, describe_machine, goals_table, table, write_results
from dept_vl.bench.shapes import SIZES, WORKLOADS, Workload, shrunk
from dept_vl.bench.train import train_rows
from dept_vl.command_line import Parser
from feature_extraction.errors import UsageError

COMMANDS = ("train", "infer", "serve", "store")
PROMPT_LENGTHS = (0, 20, 40, 60, 80, 100)
H100_TFLOPS = 790.0  # bf16, as measured with large matrix products
EXAMPLES = """\
  python -m dept_vl.bench train --smoke
  python -m dept_vl.bench train --sizes base,large --workloads padded,glue,vl --batches 16,256 --output bench/train
  python -m dept_vl.bench infer --sizes base --output bench/infer
  python -m dept_vl.bench serve --requests 2000
  python -m dept_vl.bench store --images 5000"""


def main(arguments: list[str]) -> None:
    """Run one benchmark."""
    if arguments[:1] == ["store"]:
        from dept_vl.bench.feature_store import main as store  # needs h5py

        store(arguments[1:])
        return
    options = _parser().parse_args(arguments)
    if options.command == "serve":
        _serve(options)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = options.precision == "bf16" if options.precision else device.type == "cuda"
    machine = describe_machine(device, bf16=bf16)
    sys.stdout.write(f"{machine}\n\n")
    rows = (_train if options.command == "train" else _infer)(options, device, bf16)
    sys.stdout.write(f"{table(rows)}\n\n{goals_table(options.command, rows)}\n")
    if options.output is not None:
        write_results(options.output, options.command, rows, machine)
        if options.plots:
            from dept_vl.bench.plots import draw_rows  # needs matplotlib

            for name, picture in draw_rows(rows, command=options.command, machine=machine).items():
                (options.output / name).write_bytes(picture)


def _train(options: Namespace, device: torch.device, bf16: bool) -> list[Row]:
    smoke = options.smoke
    peak = options.peak_tflops
    return train_rows(
        sizes=_sizes(options, device),
        workloads=_workloads(options),
        batch_sizes=[2] if smoke else _numbers(options.batches or "16"),
        prompt_lengths=[20] if smoke else _numbers(options.prompt_lengths or ",".join(map(str, PROMPT_LENGTHS))),
        rounds=1 if smoke else options.rounds,
        batches=2 if smoke else options.turns,
        bf16=bf16,
        device=device,
        compiles_library=options.compile_library and not smoke,
        peak_tflops=H100_TFLOPS if peak is None and device.type == "cuda" else peak,
    )


def _infer(options: Namespace, device: torch.device, bf16: bool) -> list[Row]:
    smoke = options.smoke
    rows = []
    for workload in _workloads(options, "padded"):
        rows += infer_rows(
            sizes=_sizes(options, device),
            workload=workload,
            batch_sizes=[2] if smoke else _numbers(options.batches or "16"),
            prompt_lengths=[20] if smoke else _numbers(options.prompt_lengths or "20,40,60,100"),
            adapters=4 if smoke else options.adapters,
            rounds=1 if smoke else options.rounds,
            bf16=bf16,
            device=device,
        )
    return rows


def _serve(options: Namespace) -> None:
    from dept_vl.bench.serve import serve_figures

    smoke = options.smoke
    figures = serve_figures(
        backbone=options.backbone,
        adapters=3 if smoke else options.adapters,
        requests=24 if smoke else options.requests,
        concurrency=4 if smoke else options.concurrency,
        max_batch=options.max_batch,
    )
    for name, value in figures._asdict().items():
        if name != "answers":
            sys.stdout.write(f"{name:12} {value}\n")
    if figures.errors:
        raise UsageError(f"{figures.errors} of {figures.requests} requests had no answer, first: {figures.first_error}")


def _parser() -> Parser:
    parser = Parser("dept_vl.bench", "Our engine beside others in one run: medians, memory, goals.", EXAMPLES)
    parser.add_argument("command", choices=COMMANDS, help="store has options of its own: store --help")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to see that it runs; no figures to keep")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write results.json and table.md there")
    parser.add_argument("--plots", action="store_true", help="and plots as SVG; needs matplotlib")
    parser.add_argument("--sizes", help=f"of {', '.join(SIZES)} (default: mini on a CPU, base on a GPU)")
    parser.add_argument("--workloads", help=f"of {', '.join(WORKLOADS)} (default: all; infer: padded)")
    parser.add_argument("--batches", help="examples in a batch (default: 16)")
    parser.add_argument("--prompt-lengths", help="m of ours, at a budget of l = 100 (default: 0,20,40,60,80,100)")
    parser.add_argument("--rounds", type=int, default=5, help="over all turns (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=8, help="train: different batches (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--peak-tflops", type=float, help=f"of the device (default on a GPU: {H100_TFLOPS:g}, an H100)")
    parser.add_argument("--compile-library", action="store_true", help="train: the library's layers compiled as well")
    parser.add_argument("--adapters", type=int, default=64, help="infer, serve (default: %(default)s)")
    parser.add_argument("--backbone", default="t5-mini", help="serve (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="serve (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=32, help="serve: requests at a time (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=64, help="serve (default: %(default)s)")
    return parser


def _sizes(options: Namespace, device: torch.device) -> list[str]:
    if options.smoke:
        return ["tiny"]
    return _names(options.sizes or ("base" if device.type == "cuda" else "mini"), SIZES, "--sizes")


def _workloads(options: Namespace, default: str = "padded,glue,vl") -> list[Workload]:
    chosen = [WORKLOADS[name] for name in _names(options.workloads or default, WORKLOADS, "--workloads")]
    return [shrunk(one) for one in chosen] if options.smoke else chosen


def _names(text: str, known: Collection[str], option: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option} names {unknown[0]!r}. It is some of: {', '.join(known)}")
    return names


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is no list of whole numbers, such as 16,256") from None
    if min(numbers) < 0:
        raise UsageError(f"{text!r} has a number below 0")
    return numbers
