"""Five tasks of SuperGLUE, and ReCoRD to transfer from: their official files, texts, scores and submissions.

A table has a row for each task; one reader serves them all. Texts are "field: value" pieces, as DePT's, with labels as
digits; ``template: t5`` gives the texts and label words that T5 was pre-trained on. WSC's two spans are marked in the
text. Differences from DePT's code:

- WSC's spans are found by their words, also where the official index or capitals are wrong or one span is in the
  other, as in 9 of the 104 rows of val.jsonl. DePT reads rows with corrected capitals, the hub's "wsc.fixed".
- CB's macro F1, MultiRC's F1 and exact match are official; MultiRC's exact match is per question, which DePT leaves
  out. Its halves of val.jsonl are drawn by answers, so that a question's may lie in both: for a comparable exact match
  use official-validation.
- T5's text of BoolQ has the question behind the passage: where texts are cut, give it a ``max_text_length`` of 512.
- An answer to ReCoRD is compared with all accepted ones. With ``legacy``, as in DePT, each of them is an item of its
  own, so that no answer can be right for all items of a query with several.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dept_vl.formats.files import Faults, check_types, collector_paused, refuse, refuse_repeated
from dept_vl.formats.rows import HubSource, Row, find_file, read_label, read_rows
from dept_vl.formats.submission import check_zip
from dept_vl.formats.submission.content import read_content
from dept_vl.formats.submission.label_jsonl import (
    LabelJsonl,
    label_jsonl_faults,
    read_label_jsonl,
    write_label_jsonl,
)
from dept_vl.formats.superglue_rows import as_it_is, example_id, passage_answers, passage_queries, target_spans
from dept_vl.metrics.classification import label_scores
from dept_vl.metrics.span import span_scores
from dept_vl.settings import TaskSettings
from dept_vl.tasks.family import label_of, labels_only, member_of
from dept_vl.tasks.splits import split_source, take
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target

ENTAILMENT = LabelJsonl(("entailment", "not_entailment"))
SERVER_FILES = {  # what the server takes in one zip: the lines of each file, and the labels of its test set
    "BoolQ.jsonl": (LabelJsonl(("false", "true")), 3_245),
    "CB.jsonl": (LabelJsonl(("entailment", "contradiction", "neutral")), 250),
    "COPA.jsonl": (LabelJsonl(("0", "1"), label_type=int), 500),
    "MultiRC.jsonl": (LabelJsonl(("0", "1"), label_type=int, nested=True), 9_693),
    "ReCoRD.jsonl": (LabelJsonl(), 10_000),
    "RTE.jsonl": (ENTAILMENT, 3_000),
    "WiC.jsonl": (LabelJsonl(("false", "true")), 1_400),
    "WSC.jsonl": (LabelJsonl(("False", "True")), 146),
    "AX-b.jsonl": (ENTAILMENT, 1_104),
    "AX-g.jsonl": (ENTAILMENT, 356),
}
BOOLEANS = ("False", "True")  # T5's words
EXACT_MATCH = "exact_match"


def _same_fields(row: Row) -> Row:
    return row


def _marked_spans(row: Row) -> Row:
    spans = [(row[f"span{number}_text"], row[f"span{number}_index"], mark) for number, mark in ((1, "*"), (2, "#"))]
    return {"text": mark_spans(row["text"], spans)}


def _no_markup(row: Row) -> Row:
    return {key: re.sub("</?b>", "", value.replace("<br>", " ")) for key, value in row.items() if type(value) is str}


def _record_fields(row: Row) -> Row:
    """ReCoRD's passage with its highlights as sentences."""
    passage = re.sub("([.?!\"'])\n@highlight\n", r"\1 ", row["passage"]).replace("\n@highlight\n", ". ")
    return {"record query": row["query"], "entities": ", ".join(row["entities"]), "passage": passage}


class Kind(NamedTuple):
    """A data set of SuperGLUE."""

    file: str  # the server's; one of SERVER_FILES
    columns: Mapping[str, type]  # what the text is made of
    fields: tuple[str, ...]  # of the text, in DePT's order
    t5_fields: tuple[str, ...]  # in T5's
    t5_prefix: str
    t5_labels: tuple[str, ...] = BOOLEANS
    metrics: tuple[str, ...] = ("accuracy",)
    flatten: Callable[[Row, int, Faults], Iterator[Row]] = as_it_is  # the official row's rows
    text_fields: Callable[[Row], Row] = _same_fields

    @property
    def form(self) -> LabelJsonl:
        """The lines of its submission file."""
        return SERVER_FILES[self.file][0]

    def words(self, template: str) -> tuple[str, ...]:
        """What is generated for each label; nothing for free answers."""
        labels = self.form.labels
        return self.t5_labels[: len(labels)] if template == "t5" else tuple(map(str, range(len(labels))))


SENTENCES = ("sentence1", "sentence2", "word")
MULTIRC = ("question", "answer", "paragraph")
RECORD = ("record query", "entities", "passage")
TASKS = {
    "boolq": Kind(
        file="BoolQ.jsonl",
        columns={"question": str, "passage": str},
        fields=("question", "passage"),
        t5_fields=("passage", "question"),
        t5_prefix="boolq ",
    ),
    "cb": Kind(
        file="CB.jsonl",
        columns={"premise": str, "hypothesis": str},
        fields=("premise", "hypothesis"),
        t5_fields=("hypothesis", "premise"),
        t5_prefix="cb ",
        t5_labels=("entailment", "contradiction", "neutral"),
        metrics=("f1_macro", "accuracy"),
    ),
    "wic": Kind(
        file="WiC.jsonl",
        columns=dict.fromkeys(SENTENCES, str),
        fields=SENTENCES,
        t5_fields=SENTENCES,
        t5_prefix="wic ",
    ),
    "wsc": Kind(
        file="WSC.jsonl",
        columns={"text": str, "span1_text": str, "span1_index": int, "span2_text": str, "span2_index": int},
        fields=("text",),
        t5_fields=("text",),
        t5_prefix="wsc ",
        flatten=target_spans,
        text_fields=_marked_spans,
    ),
    "multirc": Kind(
        file="MultiRC.jsonl",
        columns=dict.fromkeys(MULTIRC, str),
        fields=MULTIRC,
        t5_fields=MULTIRC,
        t5_prefix="multirc ",
        metrics=("f1", "accuracy"),
        flatten=passage_answers,
        text_fields=_no_markup,
    ),
    "record": Kind(
        file="ReCoRD.jsonl",
        columns={"query": str, "passage": str, "entities": list},
        fields=RECORD,
        t5_fields=RECORD,
        t5_prefix="",
        flatten=passage_queries,
        text_fields=_record_fields,
    ),
}
HUB = {
    name: HubSource(
        "aps/super_glue",
        "wsc.fixed" if name == "wsc" else name,
        {"train": "train", "val": "validation", "test": "test"},
    )
    for name in TASKS
}


def build(settings: TaskSettings) -> Task:
    """The task that the settings' name says.

    Raises:
        UsageError: it is none of these.
    """
    kind, hub = member_of(TASKS, settings), HUB[settings.name]
    words = kind.words(settings.template)
    return Task(
        name=settings.name,
        read=partial(read, kind=kind, hub=hub, splits=settings.splits, template=settings.template),
        read_files=partial(read_files, kind=kind),
        parse=partial(label_of, names=dict(zip(words, kind.form.labels, strict=True))),
        score=partial(score, kind=kind, legacy=settings.legacy),
        submit=partial(submit, form=kind.form),
        read_submission=partial(read_label_jsonl, form=kind.form),
        check_submission=partial(check_submission, kind=kind),
        submission_name=partial(submission_name, kind=kind, splits=settings.splits),
        labels=words,
        hub=hub,
    )


@collector_paused()
def read(
    folder: Path, split: str, *, kind: Kind, hub: HubSource, splits: Mapping[str, str], template: str
) -> list[Example]:
    """The examples of a split: of the official NAME.jsonl or, where it is not there, of the hub's rows.

    Raises:
        InputDataError: the file is missing, or its rows are no such examples; all faults are named together.
    """
    source = split_source(split_name(splits, split), split)
    path = find_file(folder, (f"{source.file}.jsonl", hub.rows_file(source.file)), split)
    return take(_examples(path, kind, template), source.part)


def read_files(files: OfficialFiles, *, kind: Kind) -> list[Example]:
    """The references of an official file, of the hub's rows, or of JSON lines with "idx" and "label".

    Raises:
        InputDataError: there is no such file, or its rows have no such references; all faults are named together.
    """
    return _examples(files.annotations, kind)


def score(predictions: Sequence[Prediction], examples: Sequence[Example], *, kind: Kind, legacy: bool) -> Scores:
    """The task's official scores, in percent.

    Accuracy; for CB also the mean F1 of its three labels; for MultiRC the F1 over all answers, and the exact match: the
    share of questions with every answer right. An answer that is no label is wrong. For ReCoRD, F1 and exact match of
    the words, as in reading comprehension.
    """
    if not kind.form.labels:
        return _span_scores(predictions, examples, legacy=legacy)
    scores = label_scores(predictions, examples, kind.form.labels, kind.metrics)
    if not kind.form.nested:
        return scores
    questions: dict[str, list[float]] = defaultdict(list)
    for answer, right in scores.per_example.items():
        questions[answer.rpartition("-")[0]].append(right)
    matches = [min(answers) for answers in questions.values()]
    metrics = {"f1_a": scores.metrics.pop("f1"), EXACT_MATCH: 100 * sum(matches) / len(matches) if matches else None}
    return scores._replace(metrics={**metrics, **scores.metrics})


def submit(predictions: Sequence[Prediction], path: Path, *, form: LabelJsonl) -> None:
    """Write the server's JSON lines."""
    if form.labels:
        predictions = labels_only(predictions, path, form.labels.__contains__, instead=form.labels[0])
    write_label_jsonl(path, form, predictions)


def check_submission(path: Path, questions: Path | None, *, kind: Kind) -> list[str]:
    """What the server would refuse: in the task's own file, or in a zip of all ten files.

    With official questions, the ids of the task's file are compared with theirs; in a zip, the files' lengths with
    those of the test sets.

    Raises:
        InputDataError: there is no such file, or the questions cannot be read.
    """
    wanted = None if questions is None else [one.example_id for one in read_files(OfficialFiles(questions), kind=kind)]
    content = read_content(path)
    if not content.startswith(b"PK"):
        return label_jsonl_faults(content, kind.form, wanted)
    return check_zip(
        path,
        {
            name: partial(label_jsonl_faults, form=form, wanted=wanted if name == kind.file else None, count=count)
            for name, (form, count) in SERVER_FILES.items()
        },
    )


def submission_name(split: str, *, kind: Kind, splits: Mapping[str, str]) -> str:
    """The server's name for the test set's file, as in BoolQ.jsonl; others have their source, as in BoolQ_val.jsonl."""
    source = split_source(split_name(splits, split), split).name
    return kind.file if source == "test" else kind.file.replace(".", f"_{source}.")


def mark_spans(text: str, spans: Sequence[tuple[str, int, str]]) -> str:
    """The text with a mark before and after each (span, index of its first word, mark).

    Of several places that read alike, whatever their capitals, the one nearest to the index is marked; a span that the
    text does not have is not.
    """
    marks = []
    for span, index, mark in spans:
        words = r"\s+".join(map(re.escape, span.rstrip(".").split()))
        places = list(re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE))
        if places:
            start, end = min((place.span() for place in places), key=lambda at: abs(_words(text[: at[0]]) - index))
            marks += [(start, start - end, f"{mark} "), (end, end - start, f" {mark}")]  # a longer span goes around
    for position, _, mark in sorted(marks, reverse=True):
        text = text[:position] + mark + text[position:]
    return text


def _words(text: str) -> int:
    return len(text.split())


def _examples(path: Path, kind: Kind, template: str | None = None) -> list[Example]:
    """The examples of a file; without a template, they have ids and references only."""
    faults: Faults = defaultdict(list)
    examples = []
    for line, official in read_rows(path).items():
        for row in kind.flatten(official, line, faults):
            if check_types(row, kind.columns if template else {}, f"line {line}", faults):
                references = _references(row, kind, line, faults)
                examples.append(
                    Example(
                        example_id=example_id(row, line, faults),
                        text=_text(row, kind, template) if template else "",
                        image_ids=(),
                        references=references,
                        targets=_targets(references, kind, template) if template else (),
                    )
                )
    refuse(faults, path)
    refuse_repeated(examples, 'more than one row with the same "idx"', path)
    return examples


def _text(row: Row, kind: Kind, template: str) -> str:
    fields = kind.text_fields(row)
    prefix, order = (kind.t5_prefix, kind.t5_fields) if template == "t5" else ("", kind.fields)
    return prefix + " ".join(f"{name}: {fields[name]}" for name in order)


def _references(row: Row, kind: Kind, line: int, faults: Faults) -> tuple[str, ...]:
    if kind.form.labels:
        return read_label(row, kind.form.labels, line, faults)
    answers = row.get("answers", row.get("label"))
    answers = [answers] if isinstance(answers, str) else answers or []
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        faults['"answers" is not a list of texts'].append(f"line {line}")
        return ()
    return tuple(dict.fromkeys(answers))


def _targets(references: Sequence[str], kind: Kind, template: str) -> tuple[Target, ...]:
    words = dict(zip(kind.form.labels, kind.words(template), strict=True))
    return tuple(Target(words.get(one, one), 1.0) for one in references)


def _span_scores(predictions: Sequence[Prediction], examples: Sequence[Example], *, legacy: bool) -> Scores:
    """ReCoRD's; with ``legacy``, means over the accepted answers of all queries, each compared alone."""
    answers = dict(predictions)
    scores = span_scores(answers, {one.example_id: one.references for one in examples})
    if not legacy:
        return scores
    items = [(one.example_id, answer) for one in examples for answer in one.references]
    alone = span_scores(
        {f"{one} {answer}": answers[one] for one, answer in items},
        {f"{one} {answer}": [answer] for one, answer in items},
    )
    changed = {name: alone.metrics[name] for name in ("f1", EXACT_MATCH, "ci_low", "ci_high")}
    return scores._replace(metrics={**scores.metrics, **changed})
