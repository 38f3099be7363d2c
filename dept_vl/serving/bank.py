"""The bank: prompts and merged updates of many adapters, as rows of one tensor on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from dept_vl.settings import nearest
from feature_extraction.errors import UsageError

FIRST_CAPACITY = 1024  # rows
GROWTH = 1.25  # of the tensor when it is full; while it moves, the old one and the new one are there
LISTED = 8  # names that a message lists


class _Rows(NamedTuple):
    """Rows next to each other."""

    first: int
    number: int

    @property
    def end(self) -> int:
        return self.first + self.number


class _Place(NamedTuple):
    """Where an adapter lies: its prompt, and behind it its table."""

    rows: _Rows
    prompt: int  # P


class AdapterBank:
    """For each adapter by name its prompt [P H] and its table [s H]: scale * A·B, a row for each text position.

    Adapters may differ in P and in s, and those without a prompt or table take no room for it. All rows lie in one
    tensor, which grows by a quarter when it is full. Its first row is zero: what stands for rows that there are not.
    """

    def __init__(
        self, *, hidden_size: int, dtype: torch.dtype, device: torch.device, capacity: int = FIRST_CAPACITY
    ) -> None:
        self._rows = torch.zeros(capacity, hidden_size, dtype=dtype, device=device)
        self._places: dict[str, _Place] = {}
        self._holes = [_Rows(1, capacity - 1)]

    def names(self) -> list[str]:
        """The adapters in the order they were added."""
        return list(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @property
    def bytes(self) -> int:
        """What the tensor takes, with the room that is free."""
        return self._rows.nbytes

    def bytes_of(self, name: str) -> int:
        """What one adapter takes of it."""
        return self._place(name).rows.number * self._rows[0].nbytes

    def add(self, name: str, prompt: Float[Tensor, "P H"], table: Float[Tensor, "s H"]) -> None:
        """Put an adapter in; either part may have no rows.

        Raises:
            UsageError: there is one of this name.
        """
        if name in self._places:
            raise UsageError(f"There is an adapter {name!r} already. Remove it first, or give this one another name")
        rows = self._take(len(prompt) + len(table))
        self._rows[rows.first : rows.end] = torch.cat([prompt, table]).to(self._rows)
        self._places[name] = _Place(rows, len(prompt))

    def remove(self, name: str) -> None:
        """Take an adapter out; its room is free for others.

        Raises:
            UsageError: there is none of this name.
        """
        place = self._place(name)
        del self._places[name]
        self._free(place.rows)

    @torch.no_grad()
    def put_before(
        self, names: Sequence[str], embedded: Float[Tensor, "B T H"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
        """[prompt | text] of each row by its own adapter, and which positions are real; S is T and the longest P.

        Shorter prompts are padded behind, which changes nothing, since positions count real tokens. Sums are in fp32
        wherever the bank's numbers are shorter, as they are where one adapter is used alone.

        Raises:
            UsageError: there is no adapter of one of the names.
        """
        places = [self._place(name) for name in names]
        ends = [(place.rows.first, place.rows.first + place.prompt, place.rows.end) for place in places]
        first, behind_prompt, end = torch.tensor(ends, device=embedded.device).unsqueeze(-1).unbind(dim=1)
        prompt_rows = first + torch.arange(max(place.prompt for place in places), device=embedded.device)
        prompt_mask = prompt_rows < behind_prompt
        text_rows = behind_prompt + mask.cumsum(dim=1) - 1
        prompt = self._read(prompt_rows, prompt_mask)
        text = embedded + self._read(text_rows, mask & (text_rows < end))
        return torch.cat([prompt, text], dim=1), torch.cat([prompt_mask, mask], dim=1)

    def _read(self, rows: Tensor, real: Tensor) -> Tensor:
        return functional.embedding(rows * real, self._rows).float()

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise UsageError(unknown_adapter(name, self._places))
        return self._places[name]

    def _take(self, count: int) -> _Rows:
        """Free rows, so many, next to each other; for none, no rows of anyone's."""
        if not count:
            return _Rows(1, 0)
        if all(hole.number < count for hole in self._holes):
            self._make_room(count)
        index = next(index for index, hole in enumerate(self._holes) if hole.number >= count)
        hole = self._holes.pop(index)
        if hole.number > count:
            self._holes.insert(index, _Rows(hole.first + count, hole.number - count))
        return _Rows(hole.first, count)

    def _free(self, rows: _Rows) -> None:
        holes: list[_Rows] = []
        for hole in sorted([*self._holes, rows] if rows.number else self._holes):
            if holes and holes[-1].end == hole.first:
                holes[-1] = _Rows(holes[-1].first, holes[-1].number + hole.number)
            else:
                holes.append(hole)
        self._holes = holes

    def _make_room(self, count: int) -> None:
        """Move all adapters together, into a larger tensor if there is no room for so many more rows."""
        needed = 1 + sum(place.rows.number for place in self._places.values()) + count
        capacity = len(self._rows)
        if needed > capacity:
            capacity = max(needed, int(capacity * GROWTH))
        rows, first = self._rows.new_zeros(capacity, self._rows.shape[1]), 1
        for name, place in self._places.items():
            moved = _Rows(first, place.rows.number)
            rows[moved.first : moved.end] = self._rows[place.rows.first : place.rows.end]
            self._places[name] = place._replace(rows=moved)
            first = moved.end
        self._rows, self._holes = rows, [_Rows(first, capacity - first)]


def unknown_adapter(name: str, known: Iterable[str]) -> str:
    """What to tell who asks for an adapter that is not there."""
    names = list(known)
    some = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")
    return f"No adapter is called {name!r}.{nearest(name, names)} There are {len(names):,}: {some or 'none'}"
