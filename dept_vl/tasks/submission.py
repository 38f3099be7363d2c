"""Leaderboard files of any tool: reading them, and every fault that a server refuses or silently scores as wrong.

Faults are sentences without the file's name, which the caller knows. Files are checked as they were written, byte for
byte: a server's reader is less forgiving than ours.
"""

from __future__ import annotations

import difflib
import json
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.tasks.files import KINDS, Faults, check_types, collector_paused, count_and_first, read_json, refuse
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError

LABELS = ("True", "False")  # as NLVR2's baselines write them; its scorer compares lower-cased
LONGEST_ANSWER = 1_000  # characters; the longest human caption of COCO has 250
LARGEST_MEMBER = 1 << 30  # bytes of an unpacked file; COCO's have 4 MB

SIGNATURES = (  # what a file of another format begins with
    (b"\x1f\x8b", "is packed by gzip. Unpack it first"),
    (b"PK\x03\x04", "is a zip archive. Unpack it first"),
    (b"PK\x05\x06", "is an empty zip archive"),
    (b"BZh", "is packed by bzip2. Unpack it first"),
    (b"\xfd7zXZ", "is packed by xz. Unpack it first"),
    (b"\xef\xbb\xbf", 'begins with a byte order mark, which JSON and CSV readers stumble over. Write it as "utf-8"'),
    (b"\xff\xfe", 'is in UTF-16 or UTF-32. Write it as "utf-8"'),
    (b"\xfe\xff", 'is in UTF-16. Write it as "utf-8"'),
)
UNUSUAL = re.compile(r"[<\[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")  # else an answer needs no closer look
UNUSUAL_ANSWERS = {
    "answers with a model's special tokens left in (<pad>, </s>, <unk>, <extra_id_0>, ...)": re.compile(
        r"<pad>|</?s>|<unk>|<extra_id_\d+>|<\|\w+\|>|\[(?:PAD|SEP|CLS|UNK)\]"
    ),
    "answers with a line break": re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]"),
    "answers with a control character": re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]"),
    "answers with half a character (a lone surrogate), which UTF-8 cannot hold": re.compile(r"[\ud800-\udfff]"),
}


class JsonList(NamedTuple):
    """The rows of a results file that is one JSON list."""

    id_key: str
    id_type: type  # int or str
    answer_key: str
    example: str  # of a whole file, for messages: [{"question_id": 1, "answer": "red"}, ...]
    whole: str = ""  # which ids the server wants, said when the file has a part of them, or more
    lower_case: bool = False  # answers are compared exactly with lower-case ones

    @property
    def types(self) -> dict[str, type]:
        """The keys of a row and the types of their values."""
        return {self.id_key: self.id_type, self.answer_key: str}


def read_json_list(path: Path, rows: JsonList) -> list[Prediction]:
    """The answers of a results file, in its order; further keys are ignored, and repeated ids are the caller's.

    Raises:
        InputDataError: it is no such list; all faults are named together.
    """
    found = read_json(path)
    if not isinstance(found, list):
        raise InputDataError(f"{path} holds {KINDS[type(found)]}, not a list. A results file is {rows.example}")
    faults: Faults = defaultdict(list)
    for index, row in enumerate(found):
        check_types(row, rows.types, f"row {index}", faults)
    refuse(faults, path)
    return [Prediction(str(row[rows.id_key]), row[rows.answer_key]) for row in found]


def check_json_list(path: Path, rows: JsonList, wanted: Sequence[str] | None) -> list[str]:
    """Every fault of a results file; without the wanted ids, missing and extra ones cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    return json_list_faults(read_content(path), rows, wanted)


@collector_paused()
def json_list_faults(content: bytes, rows: JsonList, wanted: Sequence[str] | None) -> list[str]:
    """Every fault of a results file with this content."""
    text, unreadable = _decode(content)
    if unreadable:
        return [unreadable]
    reader = _JsonReader(rows)
    found = reader.read(text)
    if not isinstance(found, list):
        return reader.faults
    faults: Faults = defaultdict(list)
    ids = []
    for index, row in enumerate(found):
        if check_types(row, rows.types, f"row {index}", faults):
            ids.append(str(row[rows.id_key]))
            _check_answer(row[rows.answer_key], ids[-1], rows, faults)
        elif isinstance(row, dict) and isinstance(row.get(rows.id_key), (int, str)):
            ids.append(str(row[rows.id_key]))  # its type is wrong: that is said, and not that the id is missing
    return [*reader.faults, *_sentences(faults), *_key_hint(found, rows), *_id_faults(ids, wanted, rows.whole)]


def read_label_csv(path: Path, labels: Sequence[str] = LABELS) -> list[Prediction]:
    """The lines ``identifier,label`` of a CSV without header, in its order; capitals of labels make no difference.

    Raises:
        InputDataError: a line is another one; all faults are named together.
    """
    text, unreadable = _decode(read_content(path))
    if unreadable:
        raise InputDataError(f"{path} {unreadable}")
    faults: Faults = defaultdict(list)
    predictions = _label_lines(text, labels, faults)
    refuse(faults, path)
    return predictions


def check_label_csv(path: Path, wanted: Sequence[str] | None, labels: Sequence[str] = LABELS) -> list[str]:
    """Every fault of a CSV with the lines ``identifier,label``; without the wanted ids, some cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    text, unreadable = _decode(read_content(path))
    if unreadable:
        return [unreadable]
    if text.lstrip()[0] in "[{":
        return [f"holds JSON. A CSV without header is wanted, with lines such as dev-0-0-0,{labels[0]}"]
    faults: Faults = defaultdict(list)
    ids = [one.example_id for one in _label_lines(text, labels, faults)]
    return [*_sentences(faults), *_id_faults(ids, wanted, "")]


def check_zip(path: Path, members: Mapping[str, Callable[[bytes], list[str]]]) -> list[str]:
    """Every fault of an archive that is to hold exactly these files at its top, each checked by its function.

    ``members`` have names such as captions_val2014_<alg>_results.json, with the same <alg> in all.

    Raises:
        InputDataError: there is no such file.
    """
    content = read_content(path)
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return list(_zip_faults(archive, members))
    except (zipfile.BadZipFile, EOFError) as error:
        kind = "a damaged or cut off zip archive" if content.startswith(b"PK") else "no zip archive"
        return [f"is {kind} ({error}). Pack {' and '.join(members)} again"]


def template_of(name: str, templates: Iterable[str]) -> tuple[str, str] | None:
    """The template, such as captions_val2014_<alg>_results.json, that a file name follows, and its <alg>."""
    for template in templates:
        before, _, after = template.partition("<alg>")
        match = re.fullmatch(f"{re.escape(before)}([^/\\\\]+){re.escape(after)}", name)
        if match:
            return template, match[1]
    return None


def check_name(path: Path, templates: Sequence[str]) -> list[str]:
    """What is wrong with a file's name, if it follows none of the templates."""
    if template_of(path.name, templates):
        return []
    return [f"its name is {path.name}, not {' or '.join(templates)} (<alg>: any name of yours)"]


def contents(path: Path) -> str:
    """How many rows a faultless leaderboard file has; of an archive, each of its files."""
    content = read_content(path)
    if zipfile.is_zipfile(BytesIO(content)):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return ", ".join(f"{name} with {_rows(archive.read(name))}" for name in archive.namelist())
    return _rows(content)


def read_content(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        InputDataError: there is no such file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputDataError(f"No file {path}. Check the path") from None
    except IsADirectoryError:
        raise InputDataError(f"{path} is a folder, not a leaderboard file. Give the file in it") from None


def _rows(content: bytes) -> str:
    found = json.loads(content) if content.lstrip()[:1] == b"[" else content.splitlines()
    return f"{len(found):,} rows"


def _decode(content: bytes) -> tuple[str, str]:
    """The text, and else why there is none."""
    for signature, meaning in SIGNATURES:
        if content.startswith(signature):
            return "", meaning
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        wrong = content[error.start]
        return "", f'is not in UTF-8: byte {error.start:,} is 0x{wrong:02x}. Write it with the encoding "utf-8"'
    return text, "" if text.strip() else "is empty. Write it again"


class _JsonReader:
    """Reads JSON by the letter of its standard, and says what a text is that is none."""

    def __init__(self, rows: JsonList) -> None:
        self.rows = rows
        self.faults: list[str] = []
        self.constants: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()

    def read(self, text: str) -> Any:  # noqa: ANN401 - whatever the file holds
        """The list of a file, or None; what is wrong is added to ``faults``."""
        try:
            found = json.loads(text, parse_constant=self._constant, object_pairs_hook=self._object)
        except json.JSONDecodeError as error:
            self.faults.append(self._no_json(text, error))
            return None
        except (ValueError, RecursionError) as error:
            self.faults.append(f"is not JSON that can be read: {error}. A results file is {self.rows.example}")
            return None
        self.faults += [f"{name} is no JSON: {count:,} times" for name, count in self.constants.items()]
        self.faults += [f'rows with the key "{key}" twice: {count:,}' for key, count in self.repeated.items()]
        if not isinstance(found, list):
            keys = f" with the keys {', '.join(list(found)[:3])}" if isinstance(found, dict) else ""
            self.faults.append(f"holds {KINDS[type(found)]}{keys}, not a list. A results file is {self.rows.example}")
            return None
        if not found:
            self.faults.append(f"holds a list without rows. A results file is {self.rows.example}")
        return found

    def _constant(self, name: str) -> None:
        self.constants[name] += 1

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self.repeated.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    def _no_json(self, text: str, error: json.JSONDecodeError) -> str:
        start, end = text.lstrip()[0], text.rstrip()[-1]
        place = f"line {error.lineno:,}, column {error.colno:,}"
        if error.msg == "Extra data" and start == "{":
            kind = f"holds JSON lines (one value after the other, the second at {place}) instead of one list"
        elif error.msg == "Extra data" and start == "[":
            kind = f"goes on after the end of its list, at {place}: one list is wanted, and nothing else"
        elif start == "[" and end != "]":
            kind = f"is cut off: it begins with [ and ends in {text.rstrip()[-20:]!r} without ]. Write or copy it again"
        elif text[error.pos : error.pos + 1] == "'":
            kind = f"is Python's notation with single quotes ({place}), not JSON. Write it with json.dump"
        elif text[error.pos : error.pos + 1] in ("]", "}") or error.msg.startswith("Illegal trailing comma"):
            kind = f"is not JSON: there is a comma too many before {place}"
        elif error.msg.startswith("Invalid control character"):
            kind = (
                f"is not JSON: a text holds a bare line break or control character at {place}. Write it with json.dump"
            )
        else:
            kind = f"is not JSON: {error.msg} at {place}. It begins with {text.strip()[:40]!r}"
        return f"{kind}. A results file is {self.rows.example}"


def _sentences(faults: Faults) -> Iterator[str]:
    return (f"{fault}: {count_and_first(places)}" for fault, places in faults.items() if places)


def _check_answer(answer: str, example_id: str, rows: JsonList, faults: Faults) -> None:
    if UNUSUAL.search(answer):
        for fault, pattern in UNUSUAL_ANSWERS.items():
            if pattern.search(answer):
                faults[fault].append(example_id)
    if len(answer) > LONGEST_ANSWER:
        faults[f"answers of more than {LONGEST_ANSWER:,} characters"].append(example_id)
    if rows.lower_case and answer != answer.strip().lower():
        faults["answers with capitals or outer spaces, which equal no right answer"].append(example_id)


def _key_hint(found: Sequence[Any], rows: JsonList) -> Iterator[str]:
    """For the first row with other keys, which of them was meant."""
    row = next((row for row in found if isinstance(row, dict) and not rows.types.keys() <= row.keys()), None)
    if row is None:
        return
    foreign = {_plain(key): key for key in row if key not in rows.types}
    for key in rows.types:
        near = difflib.get_close_matches(_plain(key), foreign, n=1, cutoff=0.5)
        if key not in row and near:
            yield f'write "{key}" for "{foreign[near[0]]}"'
    yield f"a row has the keys {', '.join(row) or 'none'}. A results file is {rows.example}"


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()


def _id_faults(ids: Sequence[str], wanted: Sequence[str] | None, whole: str) -> Iterator[str]:
    counts = Counter(ids)
    repeated = [one for one, count in counts.items() if count > 1]
    if repeated:
        yield f"ids with more than one row: {count_and_first(repeated)}"
    if wanted is None or not ids:
        return
    known = set(wanted)
    missing, extra = [one for one in wanted if one not in counts], [one for one in counts if one not in known]
    if len(extra) == len(counts):
        yield (
            f"none of its ids is in the questions ({count_and_first(list(counts))} against {count_and_first(wanted)}): "
            f"wrong split or phase. {whole}".rstrip()
        )
        return
    hint = f". {whole}" if whole else ""
    if missing:
        part = (
            f" (only {len(counts):,} of {len(known):,} are there: a part of the split or phase?)" if not extra else ""
        )
        yield f"missing ids: {count_and_first(missing)}{part}{hint}"
    if extra:
        yield f"ids that the questions do not have: {count_and_first(extra)}{'' if missing else hint}"


def _label_lines(text: str, labels: Sequence[str], faults: Faults) -> list[Prediction]:
    """The answers of all lines whose identifier can be made out; what is wrong is added to ``faults``."""
    known = {label.lower() for label in labels}
    form = f"identifier,{labels[0]}"
    predictions = []
    for number, line in enumerate(re.split(r"\r\n?|\n", text.removesuffix("\n").removesuffix("\r")), start=1):
        place = f"line {number}"
        identifier, *rest = (field.strip(" \"'") for field in re.split(r"[,\t;]", line))
        label = rest[0] if rest else ""
        if not line.strip():
            faults["blank lines"].append(place)
            continue
        if number == 1 and not re.search(r"\d", identifier):
            faults["a header line, where the first example belongs"].append(line)
            continue
        if '"' in line or "'" in line:
            faults[f"quotes; write {form}"].append(place)
        if "\t" in line or ";" in line:
            faults[f"a tab or semicolon instead of a comma; write {form}"].append(place)
        if len(rest) != 1:
            faults[f"{len(rest) + 1} column{'s' if rest else ''} instead of 2; write {form}"].append(place)
        elif any(" " in part.strip("\"'") for part in re.split(r"[,\t;]", line)):
            faults[f"spaces around the comma or at an end; write {form}"].append(place)
        if re.search(r"-img\d|\.png$", identifier):
            faults["an image's name instead of the example's identifier"].append(f"{place} {identifier}")
        if label.lower() not in known:
            faults[f"labels other than {' and '.join(labels)}"].append(f"{place} {label!r}")
        predictions.append(Prediction(identifier.removesuffix(".png"), label))
    return predictions


def _zip_faults(archive: zipfile.ZipFile, members: Mapping[str, Callable[[bytes], list[str]]]) -> Iterator[str]:
    faults: Faults = defaultdict(list)
    present: dict[str, str] = {}  # template: algorithm
    for member in archive.infolist():
        name = member.orig_filename
        found = template_of(name, members)
        if name.startswith("__MACOSX") or name.rpartition("/")[2] == ".DS_Store":
            faults["files that macOS adds (pack with: zip -X)"].append(name)
        elif name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            faults["absolute paths or paths with .."].append(name)
        elif "/" in name or "\\" in name:
            faults["files in a folder; they belong at the archive's top (pack with: zip -j)"].append(name)
        elif found is None:
            faults[f"files that do not belong there, by their names ({' and '.join(members)} do)"].append(name)
        elif found[0] in present:
            faults[f"more than one {found[0]}"].append(name)
        else:
            present[found[0]] = found[1]
            yield from (f"{name}: {fault}" for fault in _member_faults(archive, member, members[found[0]]))
    yield from _sentences(faults)
    missing = [template for template in members if template not in present]
    if missing:
        yield f"no file {' and '.join(missing)} at its top"
    if len(set(present.values())) > 1:
        yield f"the files name different algorithms: {' and '.join(present.values())}. Use one name in all"


def _member_faults(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, check: Callable[[bytes], list[str]]
) -> Sequence[str]:
    if member.flag_bits & 1:
        return ["is encrypted. Pack it without a password"]
    if member.file_size > LARGEST_MEMBER:
        return [f"has {member.file_size:,} bytes unpacked, more than any results file"]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return ["is packed by an unusual method. Pack it with deflate, as every zip program does by default"]
    try:
        content = archive.read(member)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        return [f"is damaged in the archive ({error}). Pack it again"]
    return check(content)
