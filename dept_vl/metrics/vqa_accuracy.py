"""VQA accuracy, digit for digit as the official script (GT-Vision-Lab/VQA, PythonEvaluationTools) computes it.

The script has surprises that move scores, all kept here: texts are processed only where annotators disagree; one
mark beside a space, or a comma between digits, changes how marks are replaced; only the first 32 periods go; a
contraction with a capital is never repaired, since words are lower-cased before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # the apostrophe, the colon and marks beyond ASCII stay
COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The script's pattern is mistyped, and never asks what stands before: "1." loses its period, ".5" keeps it.
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the script passes a flag of this value where the number of replacements belongs
NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = frozenset(("a", "an", "the"))
CONTRACTION_TABLE = """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's Id've:I'd've
I'dve:I'd've Im:I'm Ive:I've isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am
mightnt:mightn't mightnt've:mightn't've mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've
neednt:needn't notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at
shant:shan't shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't
shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd somebodyd've:somebody'd've
somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd someoned've:someone'd've
someone'dve:someone'd've someonell:someone'll someones:someone's somethingd:something'd somethingd've:something'd've
something'dve:something'd've somethingll:something'll thats:that's thered:there'd thered've:there'd've
there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've
theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've
werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd wheres:where's
whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've whyll:why'll
whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've
yall:y'all yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've
youd:you'd youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've
"""  # as the script has it, entries without effect and "somebodyd" included
CONTRACTIONS = dict(entry.split(":") for entry in CONTRACTION_TABLE.split())


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Mean over the annotators of min(matches among the others / 3, 1), in 0 to 1.

    With k of ten matching: 0, 0.3, 0.6, 0.9, and 1 from k = 4 on.
    """
    process = processing(human_answers)
    answer = process(answer)
    equal = {other: process(other) == answer for other in set(human_answers)}
    return _mean_without_each(tuple([equal[other] for other in human_answers]))


def processing(human_answers: Sequence[str]) -> Callable[[str], str]:
    """What is done to all texts of a question before they are compared: nothing much where all annotators agree.

    So "yes" does not match ten times "Yes".
    """
    return strip if len({strip(answer) for answer in set(human_answers)}) == 1 else normalise


@lru_cache(maxsize=1 << 18)
def strip(text: str) -> str:
    """The text without white space at its ends, and with a space for each line break and tab."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)  # the answers to a whole data set repeat
def normalise(text: str) -> str:
    """The text without punctuation, capitals and articles, with digits for number words, contractions repaired."""
    words = [NUMBER_WORDS.get(word, word) for word in _without_punctuation(strip(text)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def percentage(scores: Sequence[float]) -> float | None:
    """Mean of the scores times 100, rounded to two decimals as the script prints it; None of no scores."""
    return round(100 * sum_in_order(scores) / len(scores), 2) if scores else None


def sum_in_order(numbers: Sequence[float]) -> float:
    """The sum from left to right, rounded at each step: from Python 3.12 on, sum() rounds only at the end."""
    total = 0.0
    for number in numbers:
        total += number
    return total


@cache  # of ten annotators, 1024 cases; not a formula of the total, since the order of summation moves the last bit
def _mean_without_each(matches: tuple[bool, ...]) -> float:
    total = sum(matches)
    return sum_in_order([min((total - own) / 3, 1.0) for own in matches]) / len(matches)


def _without_punctuation(text: str) -> str:
    """All marks are judged by the text as it came, not as the marks before have left it."""
    delete_all = COMMA_BETWEEN_DIGITS.search(text) is not None
    replaced = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        replaced = replaced.replace(mark, "" if delete_all or beside_space else " ")
    return PERIOD.sub("", replaced, count=MOST_PERIODS)
