"""DePT's parameter budget: what a short prompt leaves over is spent on the low-rank update."""

from __future__ import annotations

from typing import NamedTuple

from feature_extraction.errors import UsageError


class Budget(NamedTuple):
    """The sizes of DePT and what they cost: ``m * d + (s + d) * r <= l * d`` (Shi & Lipani 2024, section 2.2)."""

    budget_length: int  # l
    prompt_length: int  # m
    max_text_length: int  # s
    hidden_size: int  # d
    rank: int  # r

    @property
    def allowed(self) -> int:
        """Parameters of a plain soft prompt of length l."""
        return self.budget_length * self.hidden_size

    @property
    def spent(self) -> int:
        """Parameters of P [m d], A [s r] and B [r d] together."""
        return self.prompt_length * self.hidden_size + (self.max_text_length + self.hidden_size) * self.rank

    def describe(self) -> str:
        """One line with the sizes, and advice where much of the budget cannot be spent."""
        l, m, s, d, r = self  # noqa: E741 - the paper's letters
        line = f"DePT: l={l} m={m} s={s} d={d} r={r}: {self.spent:,} of {self.allowed:,} parameters"
        left = self.allowed - self.spent
        if left < s + d:
            return line
        if r < min(s, d):
            return f"{line}; {left:,} are left over. method.rank=null takes the largest rank that fits"
        return (
            f"{line}; {left:,} are left over, since a rank above min(s, d) = {min(s, d)} adds nothing. Raise "
            f"method.prompt_length (m) to {(self.allowed - (s + d) * r) // d}, or lower method.budget_length (l)"
        )


def solve_budget(
    *, budget_length: int, prompt_length: int, max_text_length: int, hidden_size: int, rank: int | None = None
) -> Budget:
    """The largest rank that the budget allows, ``r = (l - m) * d / (s + d)`` rounded down, at most min(s, d).

    Args:
        rank: a rank to check instead.

    Raises:
        UsageError: the prompt is longer than the budget, or the given rank overspends it.
    """
    if prompt_length > budget_length:
        raise UsageError(
            f"method.prompt_length (m) is {prompt_length} but method.budget_length (l) is {budget_length}; "
            "DePT needs m <= l: lower m or raise l"
        )
    largest = (budget_length - prompt_length) * hidden_size // (max_text_length + hidden_size)
    if rank is not None and rank > largest:
        asked = Budget(budget_length, prompt_length, max_text_length, hidden_size, rank)
        raise UsageError(
            f"method.rank (r) is {rank}: with m={prompt_length}, s={max_text_length}, d={hidden_size} that is "
            f"{asked.spent:,} parameters, but l={budget_length} allows {asked.allowed:,}. "
            f"The largest rank that fits is {largest}; lower m or raise l for more"
        )
    chosen = min(largest, max_text_length, hidden_size) if rank is None else rank
    return Budget(budget_length, prompt_length, max_text_length, hidden_size, chosen)
