"""Which base model an adapter belongs to, told by the digest of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dept_vl.model.adapter import dtype_name
from dept_vl.model.backbone import family_of
from feature_extraction.differences import refuse_differences
from feature_extraction.weights import weight_digest


class BaseWeights:
    """The weights of a model as they were before PEFT put anything into it.

    Args:
        added: the name of the submodule that was put in.
    """

    def __init__(self, model: PreTrainedModel, *, added: str) -> None:
        self._model = model
        self._added = added
        self._digests: dict[tuple[torch.dtype, torch.dtype | None, frozenset[str]], str] = {}

    def identity(self, *, replaced: Collection[str]) -> dict[str, Any]:
        """What an adapter's identity says of its backbone; the tokenizer is unknown here.

        Args:
            replaced: modules that the adapter brings itself, as PEFT's modules_to_save: by the end of their names.
        """
        config: Any = self._model.config
        embeddings: Any = self._model.get_input_embeddings()
        return {
            "backbone.name": getattr(self._model, "name_or_path", "") or None,
            "backbone.family": family_of(config),
            "backbone.dtype": dtype_name(self._model.dtype),
            "backbone.weight_digest": self._digest(replaced),
            "backbone.tokenizer_digest": None,
            "backbone.hidden_size": embeddings.embedding_dim,
        }

    def refuse_others(self, identity: Mapping[str, Any], *, replaced: Collection[str], source: str) -> None:
        """Check that an adapter was trained on these weights.

        Weights in another precision are rounded to that of the training. Where these are the rounded ones, or are
        quantised, nobody can tell, and a warning says so.

        Raises:
            IncompatibleError: they are others.
        """
        wanted, precision = identity["backbone.weight_digest"], getattr(torch, identity["backbone.dtype"])
        if wanted in (self._digest(replaced), self._digest(replaced, precision)):
            return
        here = self._model.dtype
        if getattr(self._model, "is_quantized", False) or torch.promote_types(here, precision) != here:
            warnings.warn(
                f"{source} was trained on weights in {dtype_name(precision)}; here they are in {dtype_name(here)} or "
                "quantised, so it is not checked that they are the same. Load the base model with "
                f"dtype={dtype_name(precision)} once to have it checked",
                stacklevel=2,
            )
            return
        name = getattr(self._model, "name_or_path", "") or None
        refuse_differences(
            {"backbone.name": identity["backbone.name"], "backbone.weight_digest": wanted},
            {"backbone.name": name, "backbone.weight_digest": self._digest(replaced)},
            what=f"{source} was trained on another base model (expected: its own; got: this one)",
            advice="Load that base model. To use the adapter on this one all the same, read its configuration with "
            "DeptConfig.from_pretrained, set dept_vl to None in it, and give it to PeftModel.from_pretrained as config",
        )

    def _digest(self, replaced: Collection[str], dtype: torch.dtype | None = None) -> str:
        """The digest of the weights, rounded to ``dtype`` if one is given."""
        key = (self._model.dtype, dtype, frozenset(replaced))
        if key not in self._digests:
            weights = {name: value.to(dtype or value.dtype) for name, value in self._own(replaced)}
            self._digests[key] = weight_digest(weights)
        return self._digests[key]

    def _own(self, replaced: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._model.named_parameters():
            if name.startswith(f"{self._added}.") or ".modules_to_save." in name:
                continue
            name = name.replace(".original_module.", ".")
            owners = name.split(".")[:-1]
            if not any(".".join(owners[:end]).endswith(tuple(replaced)) for end in range(1, len(owners) + 1)):
                yield name, value
