"""COCO's caption scores by the scorers of the official evaluation (pycocoevalcap), on tokens that need no Java.

All are of the whole corpus, not means over images, but for ROUGE-L and CIDEr. CIDEr takes its word weights from the
references at hand, so every image's CIDEr changes with the set that it is scored in; with a single image it is 0.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from subprocess import DEVNULL, PIPE, CalledProcessError, Popen
from typing import IO, NamedTuple, cast

from dept_vl.metrics.ptb_tokens import ptb_tokens

FIGURES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor", "spice")
METEOR_FILES = ("meteor-1.5.jar", "data/paraphrase-en.gz")
SPICE_FILES = ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")

Tokens = dict[str, list[str]]  # image: its tokenised captions, as the official scorers take them


class CaptionScores(NamedTuple):
    """The scores of one set of candidates.

    ``metrics`` are times 100, CIDEr's 0 to 10 as well, as papers print it. ``cider`` is each image's, 0 to 10.
    ``reasons`` says why a metric is None.
    """

    metrics: dict[str, float | None]
    cider: dict[str, float]
    reasons: dict[str, str]


def caption_scores(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, java: bool
) -> CaptionScores:
    """BLEU-1 to 4, ROUGE-L and CIDEr; METEOR and SPICE too where ``java``, Java and their files are there.

    Both mappings have the same images, at least one, and each has a reference. Captions are tokenised in the order of
    ``references``, which can matter to the last word of one (see ptb_tokens).
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    found = iter(ptb_tokens([caption for captions in references.values() for caption in captions]))
    tokens = {image: list(islice(found, len(captions))) for image, captions in references.items()}
    candidate_tokens = {
        image: [line] for image, line in zip(tokens, ptb_tokens([candidates[image] for image in tokens]), strict=True)
    }
    if not any(line for lines in tokens.values() for line in lines):
        return CaptionScores(
            dict.fromkeys(FIGURES), {}, dict.fromkeys(FIGURES, "no reference caption has a word, only punctuation")
        )
    bleu, _ = Bleu(4).compute_score(tokens, candidate_tokens, verbose=0)
    rouge, _ = Rouge().compute_score(tokens, candidate_tokens)
    cider, per_image = Cider().compute_score(tokens, candidate_tokens)
    values: dict[str, float | str] = dict(zip(FIGURES, (*bleu, rouge, cider), strict=False))
    values["meteor"] = _meteor(tokens, candidate_tokens) if java else "it needs Java, and is not asked for here"
    values["spice"] = _spice(tokens, candidate_tokens) if java else "it needs Java, and is not asked for here"
    return CaptionScores(
        metrics={name: None if isinstance(value, str) else 100 * float(value) for name, value in values.items()},
        cider={image: float(one) for image, one in zip(tokens, per_image, strict=True)},
        reasons={name: value for name, value in values.items() if isinstance(value, str)},
    )


def _meteor(references: Tokens, candidates: Tokens) -> float | str:
    """METEOR 1.5, or why there is none."""
    folder, absent = _files("meteor", METEOR_FILES)
    if absent:
        return absent
    command = ["java", "-jar", "-Xmx2G", METEOR_FILES[0], "-", "-", "-stdio", "-l", "en", "-norm"]
    try:  # not by pycocoevalcap's own caller, which waits for ever once the program has failed
        with Popen(command, cwd=folder, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, encoding="utf-8") as program:  # noqa: S603 - its own jar
            questions, answers = cast(IO[str], program.stdin), cast(IO[str], program.stdout)

            def ask(*parts: str) -> str:
                questions.write(" ||| ".join(parts) + "\n")
                questions.flush()
                return answers.readline().strip()

            statistics = [
                ask("SCORE", *references[image], candidate.replace("|||", "").replace("  ", " "))
                for image, (candidate,) in candidates.items()
            ]
            questions.write(" ||| ".join(("EVAL", *statistics)) + "\n")
            questions.close()
            return float("".join(answers.read().split()[-1:]))  # the images' figures, and at last the corpus's
    except (OSError, ValueError) as error:
        return f"its Java program failed ({error}). It takes up to 2 GB of memory"


def _spice(references: Tokens, candidates: Tokens) -> float | str:
    """SPICE 1.0, or why there is none; the package's own attempt to download models is never reached."""
    _, absent = _files("spice", SPICE_FILES)
    if absent:
        return absent
    from pycocoevalcap.spice.spice import Spice

    try:
        with _stdout_as_stderr():
            value, _ = Spice().compute_score(references, candidates)
    except (OSError, CalledProcessError, ValueError) as error:
        return f"its Java program failed ({error}). It takes up to 8 GB of memory, and was made for Java 8"
    return float(value)


def _files(metric: str, files: Sequence[str]) -> tuple[Path, str]:
    """The folder of a metric's files, and what of them and of Java is not here."""
    package = find_spec(f"pycocoevalcap.{metric}")
    folder = Path(*(package.submodule_search_locations or ())[:1]) if package else Path()
    missing = [file for file in files if not (folder / file).is_file()]
    if not shutil.which("java"):
        return folder, "it needs Java, and no program java is on the PATH"
    return folder, f"it needs {' and '.join(missing)} in {folder}, and nothing is downloaded" if missing else ""


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """What a program that is started here writes to stdout goes to stderr; ours carries results only."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
