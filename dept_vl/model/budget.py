"""The parameter budget of DePT and ADePT: what a short prompt leaves over is spent on what moves the embeddings."""

from __future__ import annotations

from typing import NamedTuple

from feature_extraction.errors import UsageError

OFFSET_NAMES = {"position": "DePT", "token": "ADePT", "both": "DePT and ADePT"}


class Budget(NamedTuple):
    """Sizes and what they cost: at most l * d in all, of which the prompt takes m * d.

    DePT's A and B take (s + d) * r (Shi & Lipani 2024, section 2.2), ADePT's network (2 * d + 1) * r + d.
    """

    budget_length: int  # l
    prompt_length: int  # m
    max_text_length: int  # s
    hidden_size: int  # d
    rank: int  # r
    offset: str = "position"  # what is added to the embeddings: position (DePT), token (ADePT) or both, of one rank
    parameters: int | None = None  # that may be spent instead of l * d

    @property
    def per_rank(self) -> int:
        """Parameters that one more rank costs."""
        by_position, by_token = self.max_text_length + self.hidden_size, 2 * self.hidden_size + 1
        return {"position": by_position, "token": by_token, "both": by_position + by_token}[self.offset]

    @property
    def fixed(self) -> int:
        """Parameters that do not depend on the rank: the prompt, and the bias b2 of ADePT's network."""
        return self.prompt_length * self.hidden_size + (0 if self.offset == "position" else self.hidden_size)

    @property
    def largest_useful_rank(self) -> int:
        """A rank above this adds nothing: of A and B it is min(s, d), of ADePT's network d."""
        return self.hidden_size if self.offset == "token" else min(self.max_text_length, self.hidden_size)

    @property
    def allowed(self) -> int:
        """Parameters that may be spent: those of a plain soft prompt of length l, if nothing else is said."""
        return self.budget_length * self.hidden_size if self.parameters is None else self.parameters

    @property
    def spent(self) -> int:
        """Parameters of the prompt P [m d] and all that is added to the embeddings."""
        return self.fixed + self.per_rank * self.rank

    def describe(self) -> str:
        """One line with the sizes, and advice where much of the budget cannot be spent."""
        l, m, s, d, r, offset, parameters = self  # noqa: E741 - the paper's letters
        limit = f"l={l} " if parameters is None else ""
        line = f"{OFFSET_NAMES[offset]}: {limit}m={m} s={s} d={d} r={r}: {self.spent:,} of {self.allowed:,} parameters"
        left, useful = self.allowed - self.spent, self.largest_useful_rank
        if left < self.per_rank:
            return line
        if r < useful:
            return f"{line}; {left:,} are left over. method.rank=null takes the largest rank that fits"
        bound = f"{'d' if offset == 'token' else 'min(s, d)'} = {useful}"
        return (
            f"{line}; {left:,} are left over, since a rank above {bound} adds nothing. Raise method.prompt_length (m) "
            f"to {m + left // d}, or lower {'method.budget_length (l)' if parameters is None else 'the budget'}"
        )


def solve_budget(
    *,
    budget_length: int,
    prompt_length: int,
    max_text_length: int,
    hidden_size: int,
    rank: int | None = None,
    offset: str = "position",
    parameters: int | None = None,
) -> Budget:
    """The largest rank that the budget allows: for DePT ``r = (l - m) * d / (s + d)``, rounded down, at most min(s, d).

    Args:
        rank: a rank to check instead.
        offset: position (DePT), token (ADePT) or both.
        parameters: that may be spent instead of l * d.

    Raises:
        UsageError: the prompt is longer than the budget, or the given rank overspends it.
    """
    empty = Budget(budget_length, prompt_length, max_text_length, hidden_size, 0, offset, parameters)
    limit, more = (f"l={budget_length} allows", "l") if parameters is None else ("the budget is", "the budget")
    if prompt_length * hidden_size > empty.allowed:
        known = f"method.budget_length (l) is {budget_length}" if parameters is None else f"{limit} {parameters:,}"
        longest = "l" if parameters is None else f"{parameters // hidden_size}"
        raise UsageError(
            f"method.prompt_length (m) is {prompt_length} but {known}; {OFFSET_NAMES[offset]} needs m <= {longest}: "
            f"lower m or raise {more}"
        )
    largest = (empty.allowed - empty.fixed) // empty.per_rank
    if largest < 0 or (rank is not None and rank > largest):
        asked = empty._replace(rank=rank or 0)
        fits = f"The largest rank that fits is {largest}" if largest >= 0 else "No rank fits"
        raise UsageError(
            f"method.rank (r) is {'null' if rank is None else rank}: with m={prompt_length}, s={max_text_length}, "
            f"d={hidden_size} that is {asked.spent:,} parameters, but {limit} {asked.allowed:,}. "
            f"{fits}; lower m or raise {more} for more"
        )
    return empty._replace(rank=min(largest, empty.largest_useful_rank) if rank is None else rank)
