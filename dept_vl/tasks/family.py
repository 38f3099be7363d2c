"""What families of text tasks share: a member by its name, and labels for generated texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dept_vl.command_line import say
from dept_vl.settings import TaskSettings, nearest
from dept_vl.types import Prediction
from feature_extraction.errors import UsageError

Member = TypeVar("Member")


def member_of(members: Mapping[str, Member], settings: TaskSettings) -> Member:
    """The member of a module's family that the settings name.

    Raises:
        UsageError: there is no such member.
    """
    if settings.name not in members:
        raise UsageError(
            f"task.name is {settings.name!r}, but task.module {settings.module} has no such task."
            f"{nearest(settings.name, list(members))} There are: {', '.join(members)}"
        )
    return members[settings.name]


def label_of(text: str, names: Mapping[str, str]) -> str:
    """The name of the label that a generated text means, or the text, in quotes where it is the name of a label.

    ``names`` has what is generated for each label. A label's name that is not generated for it, as "1" where that is
    "acceptable", means no label, and must not pass for one.
    """
    text = text.strip()
    return names.get(text, repr(text) if text in names.values() else text)


def labels_only(
    predictions: Sequence[Prediction], path: Path, is_label: Callable[[str], object], instead: str
) -> list[Prediction]:
    """The predictions with ``instead`` for each that is no label, as a server takes only labels; says how many."""
    given = [one if is_label(one.answer) else one._replace(answer=instead) for one in predictions]
    invalid = sum(one is not other for one, other in zip(given, predictions, strict=True))
    if invalid:
        say(f"{path}: {invalid:,} of {len(given):,} answers are no label; it has {instead} in their place")
    return given
