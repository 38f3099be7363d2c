"""LoRA (Hu et al. 2021) and (IA)3 (Liu et al. 2022), as the PEFT library does them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion, Placement, choose_size, describe
from dept_vl.model.methods.parts import choose_fixed, layers_of, modules_for, widths
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError


def insert_lora(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """Give the attention's query and value projections W a low-rank update, alpha / r * B A; B starts at zero.

    GPT-2's projections are fused with the key's in one layer, which then has one update.

    Args:
        allowed: parameters of all A and B; None for no limit.

    Raises:
        UsageError: PEFT is not installed, the backbone's type is unknown or PEFT has changed it, or no rank fits.
    """
    _check("LoRA", backbone)
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_TYPE

    modules = dict(backbone.model.named_modules())
    keys = modules_for("LoRA", backbone, _lists(BY_TYPE))

    def cost(names: Sequence[str], rank: int) -> int:
        return rank * sum(sum(widths(modules[name])) for name in names)

    placements = [
        Placement(where, names, partial(cost, names)) for where, names in _places(backbone, method, keys).items()
    ]
    placement, rank = choose_size(
        method="LoRA", unit="rank", placements=placements, size=method.lora_rank, allowed=allowed
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=method.lora_alpha,  # type: ignore[arg-type]  # any number does
        target_modules=list(placement.targets),
        fan_in_fan_out=_transposed(modules, placement),
    )
    return Insertion("adapter", _inject(backbone, config), describe("LoRA", "rank", placement, rank, allowed))


def insert_ia3(backbone: Backbone, method: MethodSettings, *, allowed: int | None) -> Insertion:
    """Give keys, values and the inner states of the feed-forward layers a learned factor for each feature, at first 1.

    Which layers these are in a type of model is PEFT's choice; for some it is the queries instead of the keys.

    Args:
        allowed: factors; None for no limit.

    Raises:
        UsageError: PEFT is not installed, the backbone's type is unknown or PEFT has changed it, or the factors
            are too many.
    """
    _check("(IA)3", backbone)
    from peft import IA3Config
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEED_FORWARD
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as BY_TYPE

    modules = dict(backbone.model.named_modules())
    keys = modules_for("(IA)3", backbone, _lists(BY_TYPE))
    feed_forward = set(_ending(modules, FEED_FORWARD.get(backbone.model.config.model_type, ())))

    def cost(names: Sequence[str], _: int) -> int:
        # Feed-forward layers have factors of what they read, the others of what they make.
        return sum(widths(modules[name])[name not in feed_forward] for name in names)

    placements = [
        Placement(f"a factor for each feature of {where}", names, partial(cost, names))
        for where, names in _places(backbone, method, keys).items()
    ]
    placement, note = choose_fixed(method="(IA)3", placements=placements, allowed=allowed)
    config = IA3Config(
        target_modules=list(placement.targets),
        feedforward_modules=[name for name in placement.targets if name in feed_forward],
        fan_in_fan_out=_transposed(modules, placement),
    )
    return Insertion("adapter", _inject(backbone, config), note)


def _check(method: str, backbone: Backbone) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            f'{method} is that of the library PEFT, which is not installed. Run: pip install "dept_vl[peft]"'
        )
    if hasattr(backbone.model, "peft_config"):
        raise UsageError(
            f"The layers of {backbone.name!r} have been changed by PEFT before, and {method} on top of that would be "
            "another method. Load the backbone anew"
        )


def _places(backbone: Backbone, method: MethodSettings, keys: Sequence[str]) -> dict[str, list[str]]:
    """The modules that a method may take, by a phrase for them; the preferred first."""
    names = _ending(dict(backbone.model.named_modules()), keys)
    kinds = f"{', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else keys[0]
    return {f"{kinds} of {where}": inside for where, inside in layers_of(backbone, method, names).items()}


def _inject(backbone: Backbone, config: Any) -> list[nn.Parameter]:  # noqa: ANN401 - a PeftConfig
    """Let PEFT wrap the layers; what it added, in fp32 whatever the precision of the backbone."""
    from peft import inject_adapter_in_model

    before = {id(parameter) for parameter in backbone.model.parameters()}
    inject_adapter_in_model(config, backbone.model)
    added = [parameter for parameter in backbone.model.parameters() if id(parameter) not in before]
    for parameter in added:
        parameter.data = parameter.data.float()
    return added


def _lists(by_type: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Without the types for which PEFT has a pattern in the place of names."""
    return {kind: keys for kind, keys in by_type.items() if not isinstance(keys, str)}


def _ending(modules: Mapping[str, nn.Module], keys: Sequence[str]) -> list[str]:
    return [name for name in modules if any(name.endswith(f".{key}") for key in keys)]


def _transposed(modules: Mapping[str, nn.Module], placement: Placement) -> bool:
    """Whether the weights are stored as GPT-2's are."""
    return isinstance(modules[placement.targets[0]], Conv1D)
