"""The sizes of DePT under its parameter budget, by the table of the method's official sizes."""

from __future__ import annotations

import pytest

from dept_vl.model.budget import Budget, solve_budget
from feature_extraction.errors import UsageError

SHORT_PROMPTS = (0, 10, 20, 40, 60, 80)
RANKS = {  # (d, s): the rank for each m of SHORT_PROMPTS with l = 100
    (512, 256): (66, 60, 53, 40, 26, 13),  # T5-small
    (512, 512): (50, 45, 40, 30, 20, 10),
    (768, 256): (75, 67, 60, 45, 30, 15),  # T5-base, GPT-2
    (768, 512): (60, 54, 48, 36, 24, 12),
    (768, 348): (68, 61, 55, 41, 27, 13),
    (1024, 256): (80, 72, 64, 48, 32, 16),  # T5-large, T5-3B, GPT-2 medium
    (1024, 512): (66, 60, 53, 40, 26, 13),
    (1280, 256): (83, 75, 66, 50, 33, 16),  # GPT-2 large
    (4096, 256): (94, 84, 75, 56, 37, 18),  # Llama-2-7B
    (5120, 256): (95, 85, 76, 57, 38, 19),  # Llama-2-13B
}


@pytest.mark.parametrize(
    ("hidden_size", "max_text_length", "prompt_length", "rank"),
    [(d, s, m, r) for (d, s), ranks in RANKS.items() for m, r in zip(SHORT_PROMPTS, ranks, strict=True)],
)
def test_ranks_are_those_of_the_published_sizes(
    hidden_size: int, max_text_length: int, prompt_length: int, rank: int
) -> None:
    budget = solve_budget(
        budget_length=100, prompt_length=prompt_length, max_text_length=max_text_length, hidden_size=hidden_size
    )
    assert budget.rank == rank
    assert budget.spent <= budget.allowed == 100 * hidden_size
    assert budget.spent + max_text_length + hidden_size > budget.allowed  # one more rank would not fit


@pytest.mark.parametrize("prompt_length", [0, 20, 40, 60, 80])
@pytest.mark.parametrize("max_text_length", [256, 512])
def test_t5_base_spends_its_budget_to_the_last_parameter(prompt_length: int, max_text_length: int) -> None:
    budget = solve_budget(
        budget_length=100, prompt_length=prompt_length, max_text_length=max_text_length, hidden_size=768
    )
    assert budget.spent == 76_800
    assert "left over" not in budget.describe()


def test_a_prompt_as_long_as_the_budget_leaves_no_rank() -> None:
    assert solve_budget(budget_length=100, prompt_length=100, max_text_length=256, hidden_size=768).rank == 0


def test_short_texts_cap_the_rank_and_the_rest_comes_with_advice() -> None:
    budget = solve_budget(budget_length=100, prompt_length=40, max_text_length=20, hidden_size=768)
    assert budget == Budget(100, 40, 20, 768, rank=20)  # 58 would fit the budget, but A·B has at most rank s
    assert budget.describe() == (
        "DePT: l=100 m=40 s=20 d=768 r=20: 46,480 of 76,800 parameters; 30,320 are left over, since a rank above "
        "min(s, d) = 20 adds nothing. Raise method.prompt_length (m) to 79, or lower method.budget_length (l)"
    )


def test_the_advised_prompt_length_spends_the_rest() -> None:
    advised = solve_budget(budget_length=100, prompt_length=79, max_text_length=20, hidden_size=768)
    assert advised.rank == 20
    assert advised.allowed - advised.spent < 768
    assert advised.describe() == "DePT: l=100 m=79 s=20 d=768 r=20: 76,432 of 76,800 parameters"


def test_the_rank_is_capped_by_a_small_hidden_size_too() -> None:
    assert solve_budget(budget_length=100, prompt_length=0, max_text_length=256, hidden_size=8).rank == 3
    assert solve_budget(budget_length=1000, prompt_length=0, max_text_length=256, hidden_size=8).rank == 8


def test_a_given_rank_within_the_budget_is_taken() -> None:
    demo = solve_budget(budget_length=40, prompt_length=20, max_text_length=28, hidden_size=256, rank=18)
    assert demo.rank == 18
    assert (demo.spent, demo.allowed) == (10_232, 10_240)


def test_a_given_rank_far_below_the_budget_is_told() -> None:
    frugal = solve_budget(budget_length=100, prompt_length=60, max_text_length=256, hidden_size=768, rank=4)
    assert frugal.describe() == (
        "DePT: l=100 m=60 s=256 d=768 r=4: 50,176 of 76,800 parameters; 26,624 are left over. "
        "method.rank=null takes the largest rank that fits"
    )


def test_overspending_is_refused_with_the_largest_rank_that_fits() -> None:
    with pytest.raises(UsageError) as raised:  # the official MultiRC run
        solve_budget(budget_length=100, prompt_length=60, max_text_length=348, hidden_size=768, rank=30)
    assert str(raised.value) == (
        "method.rank (r) is 30: with m=60, s=348, d=768 that is 79,560 parameters, but l=100 allows 76,800. "
        "The largest rank that fits is 27; lower m or raise l for more"
    )


def test_a_prompt_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        solve_budget(budget_length=40, prompt_length=60, max_text_length=20, hidden_size=768)
    assert str(raised.value) == (
        "method.prompt_length (m) is 60 but method.budget_length (l) is 40; DePT needs m <= l: lower m or raise l"
    )


def test_the_network_of_adept_costs_what_its_paper_says() -> None:
    budget = solve_budget(budget_length=100, prompt_length=60, max_text_length=256, hidden_size=768, offset="token")
    assert (budget.rank, budget.spent) == (19, 76_051)
    assert budget.describe() == "ADePT: l=100 m=60 s=256 d=768 r=19: 76,051 of 76,800 parameters"


@pytest.mark.parametrize("offset", ["position", "token", "both"])
@pytest.mark.parametrize("prompt_length", [0, 20, 60, 95])
def test_one_more_rank_would_overspend(offset: str, prompt_length: int) -> None:
    sizes = {"budget_length": 100, "prompt_length": prompt_length, "max_text_length": 256, "hidden_size": 768}
    budget = solve_budget(**sizes, offset=offset)
    assert budget.spent <= budget.allowed < budget._replace(rank=budget.rank + 1).spent


def test_a_prompt_that_leaves_no_room_for_the_network_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        solve_budget(budget_length=10, prompt_length=10, max_text_length=8, hidden_size=16, offset="token")
    assert str(raised.value) == (
        "method.rank (r) is null: with m=10, s=8, d=16 that is 176 parameters, but l=10 allows 160. No rank fits; "
        "lower m or raise l for more"
    )


def test_a_number_of_parameters_stands_for_the_prompt_length_of_the_budget() -> None:
    by_length = solve_budget(budget_length=100, prompt_length=40, max_text_length=256, hidden_size=768)
    sizes = {"budget_length": 1, "prompt_length": 40, "max_text_length": 256, "hidden_size": 768}
    budget = solve_budget(**sizes, parameters=76_800)
    assert (budget.rank, budget.spent, budget.allowed) == (by_length.rank, 76_800, 76_800)
    assert budget.describe() == "DePT: m=40 s=256 d=768 r=45: 76,800 of 76,800 parameters"
    with pytest.raises(UsageError) as raised:
        solve_budget(**sizes, parameters=76_800, rank=46)
    assert str(raised.value) == (
        "method.rank (r) is 46: with m=40, s=256, d=768 that is 77,824 parameters, but the budget is 76,800. "
        "The largest rank that fits is 45; lower m or raise the budget for more"
    )
    with pytest.raises(UsageError) as raised:
        solve_budget(**sizes, parameters=30_719)
    assert str(raised.value) == (
        "method.prompt_length (m) is 40 but the budget is 30,719; DePT needs m <= 39: lower m or raise the budget"
    )
