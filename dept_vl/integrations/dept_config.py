"""What PEFT is told of a DePT adapter, and the adapter_config.json that it writes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType

from dept_vl.model.adapter import PEFT_TYPE, TENSORS_NAME, record_of
from dept_vl.model.budget import Budget, solve_budget
from dept_vl.settings import OFFSET_KINDS, OFFSETS
from feature_extraction.errors import UsageError

CHOICES = {
    "offset": OFFSET_KINDS,
    "prompt_init": ("vocabulary", "text", "normal"),
    "low_rank_init": ("official", "paper"),
}


@dataclass
class DeptConfig(PeftConfig):
    """What is trained: a short prompt, and offsets of the token embeddings by position (DePT) or by token (ADePT)."""

    prompt_length: int = 40  # m
    rank: int | None = None  # r; None: the largest that the budget allows
    max_text_length: int = 256  # s, tokens; DePT adds nothing to those beyond
    budget_length: int | None = 100  # l: l * d parameters may be spent; None: no budget, and the rank is to be given
    offset: str = "position"  # none (prompt tuning), position (DePT), token (ADePT) or both
    scale: str | float = "paper"  # of A·B: paper (1), official (8/sqrt(r)), or a number
    prompt_init: str = "vocabulary"  # vocabulary (sampled embeddings), text, or normal
    prompt_ids: list[int] | None = None  # for prompt_init text: its token ids, repeated and cut to the prompt length
    low_rank_init: str = "official"  # of A: official (uniform within 1/sqrt(r)) or paper (standard normal)
    token_dropout: float = 0.1  # in ADePT's network during training
    modules_to_save: list[str] | None = None  # further modules that train and are saved, by the end of their name
    seed: int = 0  # of the initial values
    dept_vl: dict[str, Any] | None = field(default=None, repr=False)  # of a saved adapter: what it was trained on

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(PEFT_TYPE)
        self.saved_identity: dict[str, Any] | None = None  # no field: set while an adapter is saved
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"DeptConfig.{name} is {getattr(self, name)!r}; it is one of {', '.join(choices)}")
        for name in ("prompt_length", "rank", "max_text_length", "budget_length"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"DeptConfig.{name} is {getattr(self, name)}; it is a count, 0 or more")
        if isinstance(self.scale, str) and self.scale not in ("paper", "official"):
            raise UsageError(f"DeptConfig.scale is {self.scale!r}; it is paper (1), official (8/sqrt(r)) or a number")
        if self.prompt_init == "text" and not self.prompt_ids:
            raise UsageError(
                "DeptConfig.prompt_init is 'text' but prompt_ids is empty. Give a text's token ids, "
                "as in prompt_ids=tokenizer(text).input_ids"
            )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # noqa: ANN401 - PEFT's
        """Write adapter_config.json, with dept_vl's record of the tensors that stand beside it."""
        tensors, record = Path(save_directory, TENSORS_NAME), self.dept_vl or {}
        written = replace(self, dept_vl=None)
        if self.saved_identity is not None and tensors.is_file():
            settings = record.get("settings") or {"method": self._method()}
            identity = self.saved_identity | record.get("identity", {})
            written.dept_vl = record_of(tensors, identity, settings, record.get("answers", {}))
        PeftConfig.save_pretrained(written, str(save_directory), **kwargs)

    def budget(self, hidden_size: int) -> Budget:
        """The sizes, with the rank that is asked for or fits; without offset, only the prompt counts.

        Raises:
            UsageError: they overspend the budget, or there is neither budget nor rank.
        """
        kind = "position" if self.offset == "none" else self.offset
        rank = 0 if self.offset == "none" else self.rank
        if self.offset == "none" or self.budget_length is None:
            if rank is None:
                raise UsageError("DeptConfig.rank and budget_length are both None; give one of them, as in rank=30")
            return Budget(0, self.prompt_length, self.max_text_length, hidden_size, rank, kind)
        try:
            return solve_budget(
                budget_length=self.budget_length,
                prompt_length=self.prompt_length,
                max_text_length=self.max_text_length,
                hidden_size=hidden_size,
                rank=rank,
                offset=kind,
            )
        except UsageError as error:
            raise UsageError(str(error).replace("method.", "DeptConfig.")) from None

    def _method(self) -> dict[str, Any]:
        """The configuration in the words of dept_vl's section ``method``."""
        shared = ("budget_length", "prompt_length", "rank", "prompt_init", "low_rank_init", "token_dropout")
        name = next(name for name, offset in OFFSETS.items() if offset == self.offset)
        return {"name": name, "low_rank_scale": self.scale, **{key: getattr(self, key) for key in shared}}


def _lengthen_list_of_methods() -> None:
    """Make DEPT one of PEFT's methods; a list of strings in an enumeration, which has no door for new ones."""
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_, member._value_ = PEFT_TYPE, PEFT_TYPE
    type.__setattr__(PeftType, PEFT_TYPE, member)
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member


_lengthen_list_of_methods()
