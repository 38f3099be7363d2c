from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from dept_vl.metrics import caption
from dept_vl.metrics.caption import FIGURES, caption_scores
from dept_vl.metrics.ptb_tokens import ptb_tokens

REFERENCES = {
    "1": ["A dog runs on the grass.", "a brown dog is running", "The dog's running!"],
    "2": ["Two men ride horses (on a beach)", "two people on horses"],
    "3": ["A plate of food, and a glass.", "some food on a white plate", "a meal: at 5 p.m.", "Food"],
}
CANDIDATES = {
    "3": "A plate with food.",
    "1": "a dog is running on grass",
    "2": "Two people are riding horses on a beach",
}
NEEDS_JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A program java on the PATH."""
    path = folder / "java"
    path.write_text(f"#!{sys.executable}\nimport sys\n{program}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_perfect_candidates_have_full_marks() -> None:
    references = {"1": ["a brown dog runs on grass"], "2": ["two men ride horses there"]}
    scores = caption_scores({image: one for image, (one,) in references.items()}, references, java=False)
    assert scores.metrics["bleu_4"] == pytest.approx(100)
    assert scores.metrics["rouge_l"] == pytest.approx(100)
    assert scores.metrics["cider"] == pytest.approx(1000)  # papers print 1.13 as 113
    assert scores.cider == pytest.approx({"1": 10.0, "2": 10.0})


def test_scores_by_hand() -> None:
    scores = caption_scores({"1": "a dog runs", "2": "a cat"}, {"1": ["a dog sits"], "2": ["a cat"]}, java=False)
    assert scores.metrics["bleu_1"] == pytest.approx(100 * 4 / 5)
    assert scores.metrics["bleu_2"] == pytest.approx(100 * math.sqrt(4 / 5 * 2 / 3))
    assert scores.metrics["rouge_l"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert scores.cider["2"] == pytest.approx(5)  # neither 3-grams nor 4-grams
    # "a" is in all references and weighs nothing; dog, runs, sits and each 2-gram weigh log 2, and half of them match.
    assert scores.cider["1"] == pytest.approx(10 * (1 / 2 + 1 / 2) / 4)


def test_figures_have_these_names_and_are_plain_floats(no_java: None) -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, java=True)
    assert tuple(scores.metrics) == FIGURES
    assert [type(value) for value in scores.metrics.values()] == [float] * 6 + [type(None)] * 2
    assert list(scores.cider) == list(REFERENCES)
    assert scores.metrics["cider"] == pytest.approx(100 * sum(scores.cider.values()) / 3)


def test_a_single_image_has_a_cider_of_0_as_officially() -> None:
    assert caption_scores({"1": "a dog"}, {"1": ["a dog"]}, java=False).metrics["cider"] == 0


def test_references_without_a_word_allow_no_number() -> None:
    scores = caption_scores({"1": "a dog"}, {"1": ["."]}, java=True)
    assert scores.metrics == dict.fromkeys(FIGURES)
    assert scores.reasons == dict.fromkeys(FIGURES, "no reference caption has a word, only punctuation")
    assert scores.cider == {}


def test_a_candidate_without_a_word_scores_0() -> None:
    scores = caption_scores({**CANDIDATES, "1": "."}, REFERENCES, java=False)
    assert scores.cider["1"] == 0


def test_stdout_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    caption_scores(CANDIDATES, REFERENCES, java=False)
    assert capfd.readouterr().out == ""


def test_without_java_two_figures_are_null_and_never_0(no_java: None) -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, java=True)
    reason = "it needs Java, and no program java is on the PATH"
    assert (scores.metrics["meteor"], scores.metrics["spice"]) == (None, None)
    assert scores.reasons == {"meteor": reason, "spice": reason}


def test_java_can_be_left_out() -> None:
    reason = "it needs Java, and is not asked for here"
    assert caption_scores(CANDIDATES, REFERENCES, java=False).reasons == {"meteor": reason, "spice": reason}


def test_what_is_missing_of_a_metric_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, monkeypatch, "")
    monkeypatch.setattr(caption, "METEOR_FILES", ("absent.jar", "data/absent.gz"))
    monkeypatch.setattr(caption, "SPICE_FILES", ("lib/absent.jar",))
    reasons = caption_scores(CANDIDATES, REFERENCES, java=True).reasons
    meteor, _, folder = reasons["meteor"].partition(" in ")
    assert meteor == "it needs absent.jar and data/absent.gz"
    assert folder.endswith("pycocoevalcap/meteor, and nothing is downloaded")
    assert reasons["spice"].startswith("it needs lib/absent.jar in ")


METEOR = """
for line in sys.stdin:
    parts = line.rstrip("\\n").split(" ||| ")
    print(len(parts) if parts[0] == "SCORE" else "\\n".join([*parts[1:], "0.25"]), flush=True)
"""


def test_meteor_is_the_corpus_figure_of_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, monkeypatch, METEOR)
    scores = caption_scores(CANDIDATES, REFERENCES, java=True)
    assert scores.metrics["meteor"] == 25.0
    assert "meteor" not in scores.reasons


@pytest.mark.parametrize(
    "program", ["sys.exit(1)", "print('no memory')", "for line in sys.stdin: print('x', flush=True)"]
)
def test_a_failing_program_is_a_null_with_its_reason(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(tmp_path, monkeypatch, program)
    scores = caption_scores(CANDIDATES, REFERENCES, java=True)
    assert scores.metrics["meteor"] is None
    assert scores.reasons["meteor"].startswith("its Java program failed (")
    assert scores.reasons["meteor"].endswith("). It takes up to 2 GB of memory")


class FakeSpice:
    """Stands for the official caller, which starts a program and downloads what it misses."""

    def compute_score(self, references: object, candidates: object) -> tuple[float, list[float]]:
        subprocess.run([sys.executable, "-c", "print('talk of the program')"], check=True)
        return 0.125, []


class FailingSpice:
    """The same, where the program fails."""

    def compute_score(self, references: object, candidates: object) -> tuple[float, list[float]]:
        raise CalledProcessError(1, ["java"])


def with_spice(spice: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(folder, monkeypatch, METEOR)
    monkeypatch.setattr(caption, "SPICE_FILES", ())
    module = types.ModuleType("pycocoevalcap.spice.spice")
    module.Spice = spice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", module)


def test_spice_is_given_where_its_files_are_there_and_leaves_stdout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with_spice(FakeSpice, tmp_path, monkeypatch)
    assert caption_scores(CANDIDATES, REFERENCES, java=True).metrics["spice"] == 12.5
    assert capfd.readouterr() == ("", "talk of the program\n")


def test_a_failing_spice_is_a_null_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_spice(FailingSpice, tmp_path, monkeypatch)
    scores = caption_scores(CANDIDATES, REFERENCES, java=True)
    assert scores.metrics["spice"] is None
    failure = "Command '['java']' returned non-zero exit status 1."
    hint = "It takes up to 8 GB of memory, and was made for Java 8"
    assert scores.reasons["spice"] == f"its Java program failed ({failure}). {hint}"


@NEEDS_JAVA
def test_figures_are_those_of_the_official_pipeline(capfd: pytest.CaptureFixture[str]) -> None:
    compare_with_official(CANDIDATES, REFERENCES)


@NEEDS_JAVA
@pytest.mark.shared
def test_figures_on_real_captions_are_those_of_the_official_pipeline(shared: Path) -> None:
    from dept_vl.formats.karpathy import read_karpathy

    images = read_karpathy(shared / "data" / "flickr8k-1000" / "dataset.json")
    references = {image.number: list(image.captions[1:]) for image in images}
    compare_with_official({image.number: image.captions[0] for image in images}, references)


@NEEDS_JAVA
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its pipes open
def test_meteor_is_that_of_the_official_pipeline() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    references, candidates = official_tokens(CANDIDATES, REFERENCES)
    expected, _ = Meteor().compute_score(references, candidates)
    assert caption_scores(CANDIDATES, REFERENCES, java=True).metrics["meteor"] == pytest.approx(
        100 * expected, abs=1e-9
    )


def compare_with_official(candidates: dict[str, str], references: dict[str, list[str]]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    tokens = official_tokens(candidates, references)
    bleu, _ = Bleu(4).compute_score(*tokens, verbose=0)
    rouge, _ = Rouge().compute_score(*tokens)
    cider, per_image = Cider().compute_score(*tokens)
    ours = caption_scores(candidates, references, java=False)
    found = [ours.metrics[name] for name in FIGURES[:6]]
    assert found == pytest.approx([100 * value for value in (*bleu, rouge, cider)], abs=1e-9)
    assert list(ours.cider.values()) == pytest.approx(per_image, abs=1e-9)


def official_tokens(
    candidates: dict[str, str], references: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """By pycocoevalcap's own caller of the Java tokenizer."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    rows = {image: [{"caption": one} for one in captions] for image, captions in references.items()}
    return tokenizer.tokenize(rows), tokenizer.tokenize({one: [{"caption": candidates[one]}] for one in rows})


@pytest.mark.shared
def test_the_official_sample_has_the_n_grams_of_its_published_scores(shared: Path) -> None:
    """The official demo prints guess: [9893, 8893, 7893, 6893] for its 1,000 captions."""
    sample = json.loads((shared / "data" / "coco_caption" / "captions_val2014_fakecap_results.json").read_text())
    lengths = [len(line.split()) for line in ptb_tokens([row["caption"] for row in sample])]
    guesses = [sum(max(length - n, 0) for length in lengths) for n in range(4)]
    assert guesses == [9893, 8893, 7893, 6893]
