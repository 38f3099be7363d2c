"""Which parameters train, in which group, and how many they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from dept_vl.model.methods.insertion import Insertion
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.settings import OptimizerSettings

GROUPS = ("prompt", "low_rank", "visual", "head", "adapter", "backbone")  # each has a rate and a weight decay


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate and a weight decay; names are those in the adapter file."""

    name: str  # one of GROUPS
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    weight_decay: float

    @property
    def size(self) -> int:
        """Numbers in all parameters of the group."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def select_trainable(
    model: PromptedModel, insertions: Sequence[Insertion], optimizer: OptimizerSettings
) -> list[ParameterGroup]:
    """Freeze all but what was added to the backbone and what the insertions name; return what trains."""
    found: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUPS}
    for name, prompt in model.encoder.prompts().items():
        for group, parameters in prompt.groups().items():
            found[group] |= {f"{name}.{key}": value for key, value in parameters.items()}
    if model.encoder.visual_embedding is not None:
        visual = model.encoder.visual_embedding.named_parameters()
        found["visual"] = {f"visual_embedding.{name}": value for name, value in visual}
    found["head"] = {f"heads.{name}": value for name, value in model.heads.named_parameters()}
    group_of = {id(value): insertion.group for insertion in insertions for value in insertion.parameters}
    for name, value in model.backbone.named_parameters():
        if id(value) in group_of:
            found[group_of[id(value)]][f"backbone.{name}"] = value

    model.requires_grad_(False)
    groups = []
    for name, candidates in found.items():
        parameters = {key: value for key, value in candidates.items() if value.numel()}  # m or r may be 0
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        if parameters:
            rate, decay = getattr(optimizer, f"{name}_lr"), getattr(optimizer, f"{name}_weight_decay")
            groups.append(ParameterGroup(name, parameters, rate, decay))
    return groups


class TrainableCount(NamedTuple):
    """How many parameters train: the method's own, the visual part's, the classification heads', and all there are."""

    own: int
    visual: int
    heads: int
    total: int  # of the model, trained or not

    @property
    def percent(self) -> float:
        """Share of the model that trains, as VL-Adapter reports it: trained / (model with the added parts) * 100."""
        return 100 * self.trained / self.total

    @property
    def trained(self) -> int:
        """All that train."""
        return self.own + self.visual + self.heads

    def describe(self, method: str) -> str:
        """One line with all of them."""
        heads = f" + {self.heads:,} of classification heads" if self.heads else ""
        return (
            f"trainable parameters: {self.own:,} of {method} itself + {self.visual:,} of the visual embedding{heads} "
            f"= {self.trained:,} ({self.percent:.2f} % of {self.total:,})"
        )


def count_trainable(model: PromptedModel, groups: list[ParameterGroup]) -> TrainableCount:
    """Count the parameters of the groups."""
    sizes = {group.name: group.size for group in groups}
    visual, heads = sizes.get("visual", 0), sizes.get("head", 0)
    return TrainableCount(
        own=sum(sizes.values()) - visual - heads,
        visual=visual,
        heads=heads,
        total=sum(parameter.numel() for parameter in model.parameters()),
    )
