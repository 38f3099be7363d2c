"""The published DePT checkpoints as adapters of ours: ``python -m dept_vl.import_official --help``.

The authors' repository (github.com/ZhengxiangShi/DePT) holds, for each run, ``adapter_config.json`` and
``adapter_model.bin``, a pickle of the prompt P, and of A and B unless it was written before these were saved. A token's
embedding becomes ``E + 8 / sqrt(r) * (A · B)[slot]``, where slots count the tokens of a text that is padded on the
right; that is our position, so nothing changes but the names.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dept_vl.command_line import Parser, command_text, run, say
from dept_vl.config import layer_names, load_settings
from dept_vl.settings import Settings, TaskSettings
from feature_extraction.differences import refuse_differences
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.bin"
# What our method has no other form of: the kind of prompt, the family that counts slots from the left, the scale.
FIXED = {
    "peft_type": "PROMPT_TUNING_LORA",
    "task_type": "SEQ_2_SEQ_LM",
    "num_transformer_submodules": 1,
    "lora_alpha": 8,
}
SIZES = ("num_virtual_tokens", "r", "max_length", "token_dim")  # m, r, s, d
UNNAMED = "unnamed"  # the task of an adapter that is imported without one

EXAMPLES = """\
  python -m dept_vl.import_official --adapter DePT/checkpoints/cola --backbone t5-base --task cola --output runs/cola
  python -m dept_vl.evaluate --run runs/cola --data glue/CoLA --split test
  python -m dept_vl.import_official --adapter DePT/checkpoints/sst2 --backbone models/t5-base --output adapters/sst2"""


class OfficialAdapter(NamedTuple):
    """What one published folder holds."""

    config: dict[str, Any]
    prompt: Tensor  # P [m d]
    a: Tensor  # [s r]
    b: Tensor  # [r d]


def main(arguments: list[str]) -> None:
    """Convert an adapter as the arguments say."""
    parser = Parser(
        "dept_vl.import_official", "Convert a published DePT checkpoint into an adapter or a run.", EXAMPLES
    )
    parser.add_argument(
        "--adapter", required=True, type=Path, metavar="DIR", help=f"folder with {CONFIG_NAME} and {TENSORS_NAME}"
    )
    parser.add_argument(
        "--backbone", required=True, metavar="NAME", help="what it was trained on: t5-base, or a local folder of it"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="new folder: a run if --task is given, else an adapter",
    )
    parser.add_argument("--task", metavar="TASK", help=f"to be evaluated on, of: {', '.join(layer_names('task'))}")
    parser.add_argument(
        "--trained-length",
        type=int,
        metavar="N",
        help="tokens of the longest text that it was trained on; later rows of A, which only add noise, are set to 0",
    )
    options = parser.parse_args(arguments)
    if options.output.is_dir() and any(options.output.iterdir()):
        raise UsageError(f"--output {options.output} is not empty. Give a new folder")
    official = read_official(options.adapter)
    settings = settings_for(official, backbone=options.backbone, task=options.task)
    length = trained_length(official, options.trained_length)
    write(official, settings, options.output, trained_length=length, task=options.task, arguments=arguments)


def read_official(folder: Path) -> OfficialAdapter:
    """Read a published adapter; its tensors are those that its configuration names, all of them.

    Raises:
        InputDataError: it is no such adapter, or only a part of one.
        DamagedError: a file cannot be read.
        IncompatibleError: the tensors have other shapes than the configuration says.
    """
    import pickle

    import torch

    config = _read_config(folder / CONFIG_NAME)
    path = folder / TENSORS_NAME
    if not path.is_file():
        raise InputDataError(f"{folder} has no {TENSORS_NAME}. Give a folder of the official repository's checkpoints/")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The library's own advice would be to run whatever the file says.
        raise DamagedError(
            f"{path} is no pickle of tensors alone, and nothing else is read. Download it again"
        ) from error
    except Exception as error:  # what other bytes raise is anybody's guess
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DamagedError(f"{path} cannot be read: {reason}. Download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise DamagedError(f"{path} holds something else than named tensors. Download it again")
    m, r, s, d = (config[name] for name in SIZES)
    wanted = {
        "prompt_embeddings": (m, d),
        "prompt_encoder.lora_embedding_A": (s, r),
        "prompt_encoder.lora_embedding_B": (r, d),
    }
    missing = [f"{name} ({shape[0]} x {shape[1]})" for name, shape in wanted.items() if name not in tensors]
    if missing:
        raise InputDataError(
            f"{path} is only a part of a DePT adapter: {' and '.join(missing)} missing. The official code first saved "
            "the prompt alone, and nothing can stand in for the rest. Choose another checkpoint, such as cola or sst2"
        )
    refuse_differences(
        wanted,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        what=f"The tensors of {path} are not those of {CONFIG_NAME} beside it",
        advice="Take both files from one checkpoint",
    )
    return OfficialAdapter(config, *(tensors[name].float().contiguous() for name in wanted))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputDataError(
            f"{path.parent} has no {CONFIG_NAME}. Give a folder of the official repository's checkpoints/"
        ) from None
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON: {error}. Download it again") from error
    if not isinstance(config, dict):
        raise DamagedError(f"{path} is no JSON object. Download it again")
    odd = [
        f"{name} is {config.get(name)!r}, not {value!r}" for name, value in FIXED.items() if config.get(name) != value
    ]
    odd += [
        f"{name} is {config.get(name)!r}, not a number of 1 or more"
        for name in SIZES
        if type(config.get(name)) is not int or config[name] < 1
    ]
    if odd:
        raise InputDataError(
            f"{path} is not that of a published DePT adapter: {'; '.join(odd)}. Give one of an encoder-decoder, as the "
            "official code writes it"
        )
    return config


def settings_for(official: OfficialAdapter, *, backbone: str, task: str | None) -> Settings:
    """The settings of a run that would train this adapter: the published recipe of the task, with its own sizes.

    Raises:
        UsageError: the task has images, or there is no such task.
    """
    m, r, s, d = (official.config[name] for name in SIZES)
    text = official.config.get("prompt_tuning_init_text")
    from_text = official.config.get("prompt_tuning_init") == "TEXT" and bool(text)
    sizes = [
        *("method.name=dept", "method.low_rank_init=official", "method.low_rank_scale=official"),
        *(f"method.prompt_length={m}", f"method.rank={r}", f"task.max_text_length={s}"),
        f"method.budget_length={max(100, math.ceil((m * d + (s + d) * r) / d))}",
        *([f"method.prompt_text={text}", "method.prompt_init=text"] if from_text else ["method.prompt_init=normal"]),
    ]
    recipe = f"dept_{task}" if f"dept_{task}" in layer_names("recipe") else None
    settings = load_settings({"backbone": backbone, "task": task, "recipe": recipe}, sizes)
    if task is None:
        return replace(settings, tasks={UNNAMED: TaskSettings(name=UNNAMED, images_per_example=0, max_text_length=s)})
    if settings.task.images_per_example:
        raise UsageError(f"--task {task} has images, but the published adapters are of text tasks. Name one of those")
    return settings


def trained_length(official: OfficialAdapter, wanted: int | None) -> int:
    """How many rows of A count as trained: all, unless fewer are wanted.

    Raises:
        UsageError: A has not so many.
    """
    rows = len(official.a)
    if wanted is not None and not 1 <= wanted <= rows:
        raise UsageError(f"--trained-length is {wanted}, but A has {rows} rows. Give 1 to {rows}")
    return wanted or rows


def write(
    official: OfficialAdapter,
    settings: Settings,
    output: Path,
    *,
    trained_length: int,
    task: str | None,
    arguments: list[str],
) -> None:
    """Write the adapter, or with a task the folder of a finished run, and tell what is in it.

    Raises:
        IncompatibleError: the backbone has another hidden size.
        InputDataError, DamagedError: there is no such backbone, or it is not whole.
    """
    import torch

    from dept_vl.model.adapter import Adapter, save_adapter
    from dept_vl.model.backbone import load_backbone
    from dept_vl.run_folder import compute_dtype, open_run, publish_adapters, run_identity, run_record

    backbone = load_backbone(settings.backbone, dtype=compute_dtype(settings))
    (m, d), (s, r) = official.prompt.shape, official.a.shape
    base = str(official.config.get("base_model_name_or_path"))
    if backbone.hidden_size != d:
        raise IncompatibleError(
            f"The adapter's vectors have {d} numbers, but those of the backbone {backbone.name} have "
            f"{backbone.hidden_size}. Give the backbone that it was trained on: --backbone {base}"
        )
    if backbone.family != "encoder_decoder":
        raise IncompatibleError(
            f"The adapter was trained on an encoder-decoder, but the backbone {backbone.name} is of the family "
            f"{backbone.family}. Give the backbone that it was trained on: --backbone {base}"
        )
    a = official.a.clone()
    a[trained_length:] = 0
    tensors = {"prompt.prompt": official.prompt, "prompt.a": a, "prompt.b": official.b}
    tensors["prompt.trained_length"] = torch.tensor(trained_length)
    identity = run_identity(settings, backbone, None)
    adapter = Adapter(identity, asdict(settings), tensors)
    if task is None:
        save_adapter(output, adapter)
    else:
        command = command_text("dept_vl.import_official", arguments)
        record = run_record(command=command, settings=settings, data={}, features={}, identity=identity)
        open_run(output, settings, record)
        publish_adapters(output, {task: adapter}, settings)
    say(f"P {m} x {d}, A {s} x {r} ({trained_length} rows trained), B {r} x {d}, scale 8/sqrt({r}) = {8 * r**-0.5:.4f}")
    say(f"Trained on {base}. The checkpoint has no digest, so whether {backbone.name} is that is not checked")
    say(f"Wrote {output}" if task is None else f"Wrote {output}: evaluate it with --run {output} --data DIR")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
