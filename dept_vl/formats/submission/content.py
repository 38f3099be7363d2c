"""What leaderboard files of all formats share: bytes that are text, ids that are those of the questions, and a name."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from dept_vl.formats.files import Faults, count_and_first
from feature_extraction.errors import InputDataError

SIGNATURES = (  # what content of another format begins with
    (b"\x1f\x8b", "is packed by gzip. Unpack it first"),
    (b"PK\x03\x04", "is a zip archive. Unpack it first"),
    (b"PK\x05\x06", "is an empty zip archive. Give the file itself"),
    (b"BZh", "is packed by bzip2. Unpack it first"),
    (b"\xfd7zXZ", "is packed by xz. Unpack it first"),
    (b"\xef\xbb\xbf", 'begins with a byte order mark, which readers stumble over. Write it with the encoding "utf-8"'),
    (b"\xff\xfe", 'is in UTF-16 or UTF-32. Write it with the encoding "utf-8"'),
    (b"\xfe\xff", 'is in UTF-16. Write it with the encoding "utf-8"'),
)


class Named(NamedTuple):
    """A file name's parts."""

    template: str  # captions_val2014_<alg>_results.json
    algorithm: str  # what stands there for <alg>; "" where the template has none


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


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        InputDataError: there is no such file, or it is no text.
    """
    text, unreadable = decode(read_content(path))
    if unreadable:
        raise InputDataError(f"{path} {unreadable}")
    return text


def decode(content: bytes) -> tuple[str, str]:
    """The text; and if there is none, why."""
    for signature, meaning in SIGNATURES:
        if content.startswith(signature):
            return "", meaning
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start:,} is 0x{content[error.start]:02x}"
        return "", f'is not in UTF-8 ({wrong}). Write it with the encoding "utf-8"'
    return text, "" if text.strip() else "is empty. Write it again"


def sentences(faults: Faults) -> Iterator[str]:
    """Each fault with its count and first places."""
    return (f"{fault}: {count_and_first(places)}" for fault, places in faults.items() if places)


def id_faults(ids: Sequence[str], wanted: Sequence[str] | None, whole: str = "") -> Iterator[str]:
    """How ids differ from the wanted ones, each once; ``whole`` says which ids the server wants."""
    counts = Counter(ids)
    repeated = [one for one, count in counts.items() if count > 1]
    if repeated:
        yield f"ids with more than one row: {count_and_first(repeated)}"
    if wanted is None or not ids:
        return
    known = set(wanted)
    missing = [one for one in wanted if one not in counts]
    extra = [one for one in counts if one not in known]
    hint = f". {whole}" if whole else ""
    if len(extra) == len(counts):
        yield (
            f"wrong split or phase: none of its ids is among those of the questions, {count_and_first(extra)} "
            f"against {count_and_first(wanted)}{hint}"
        )
    elif missing and not extra:
        yield (
            f"missing ids: {count_and_first(missing)}; it answers only {len(counts):,} of {len(known):,} questions. "
            f"Is it another split or phase, or cut off?{f' {whole}' if whole else ''}"
        )
    else:
        if missing:
            yield f"missing ids: {count_and_first(missing)}"
        if extra:
            yield f"ids that the questions do not have: {count_and_first(extra)}{hint}"


def template_of(name: str, templates: Iterable[str]) -> Named | None:
    """The template that a file name follows, if there is one."""
    for template in templates:
        pattern = r"([^/\\]+)".join(re.escape(part) for part in template.split("<alg>"))
        match = re.fullmatch(pattern, name)
        if match:
            return Named(template, "".join(match.groups()))
    return None


def check_name(path: Path, templates: Sequence[str]) -> list[str]:
    """What is wrong with the name of a file, which is to follow one of the templates."""
    if template_of(path.name, templates):
        return []
    return [f"its name is {path.name}, not {' or '.join(templates)}, <alg> being the name of your method"]


def contents(path: Path) -> str:
    """How many rows a faultless leaderboard file has; of an archive, each of its files."""
    content = read_content(path)
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return " and ".join(f"{name} with {_rows(archive.read(name))}" for name in archive.namelist())
    return _rows(content)


def _rows(content: bytes) -> str:
    try:
        found = json.loads(content)
    except ValueError:  # lines
        found = None
    if isinstance(found, dict) and "idx" not in found:  # SuperGLUE's only line
        return f"{len(found):,} {'answer' if len(found) == 1 else 'answers'}"
    count = len(found if isinstance(found, list) else content.splitlines())
    count -= content.startswith(b"index\tprediction")  # GLUE's header
    return f"{count:,} {'row' if count == 1 else 'rows'}"
