"""DePT and ADePT as a method of the PEFT library, for Hugging Face language models.

Importing this module makes the method known to PEFT, whose functions then do what they do for its own methods::

    from dept_vl.integrations.peft import DeptConfig

    model = get_peft_model(model, DeptConfig(task_type="SEQ_2_SEQ_LM", prompt_length=40, max_text_length=128))

The arithmetic is that of ``dept_vl.model``. PEFT has no door for methods from outside: its list of methods is
lengthened, and ``BaseTuner`` is used as its own methods use it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

try:
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import register_peft_method
except ImportError as error:
    raise ImportError(f"dept_vl.integrations.peft needs peft ({error}). Run: pip install 'dept_vl[peft]'") from error

if not hasattr(BaseTuner, "_get_adapter_state_dict"):
    raise ImportError(
        "dept_vl.integrations.peft needs peft 0.21, and an older one is installed. Run: pip install 'dept_vl[peft]'"
    )

from dept_vl.integrations.dept_config import DeptConfig
from dept_vl.integrations.dept_model import DeptModel
from dept_vl.model.adapter import PEFT_TYPE
from dept_vl.model.soft_prompt import SoftPrompt
from feature_extraction.errors import UsageError

__all__ = ["DeptConfig", "DeptModel", "parameter_groups"]


def parameter_groups(
    model: nn.Module,
    *,
    prompt_lr: float = 0.3,
    low_rank_lr: float = 1e-3,
    modules_lr: float = 1e-3,
    weight_decay: float = 1e-5,
) -> list[dict[str, Any]]:
    """What trains in a model, in groups for a torch optimizer: the prompts, what moves the embeddings, and all else.

    DePT wants a large rate for the prompt and a small one for A and B, or for ADePT's network.

    Args:
        modules_lr: of ``modules_to_save``.

    Raises:
        UsageError: the model has no trainable prompt.
    """
    prompts = [one for one in model.modules() if isinstance(one, SoftPrompt)]
    found = {
        "prompt": ([prompt.prompt for prompt in prompts], prompt_lr),
        "low_rank": ([value for prompt in prompts for value in prompt.groups()["low_rank"].values()], low_rank_lr),
    }
    known = {id(value) for parameters, _ in found.values() for value in parameters}
    found["modules"] = ([value for value in model.parameters() if id(value) not in known], modules_lr)
    groups = []
    for name, (parameters, rate) in found.items():
        trained = [value for value in parameters if value.requires_grad and value.numel()]
        if trained:
            groups.append({"name": name, "params": trained, "lr": rate, "weight_decay": weight_decay})
    if not any(group["name"] != "modules" for group in groups):
        raise UsageError(
            "No prompt of DePT trains in this model. Make it by get_peft_model with a DeptConfig, or load it with "
            "is_trainable=True"
        )
    return groups


register_peft_method(name=PEFT_TYPE.lower(), config_cls=DeptConfig, model_cls=DeptModel)
