"""The leaderboard file that is a zip archive of several."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path

from dept_vl.formats.files import Faults
from dept_vl.formats.submission.content import Named, read_content, sentences, template_of

LARGEST = 1 << 30  # bytes of an unpacked file; COCO's and QQP's have about 4 MB

Check = Callable[[bytes], list[str]]  # the faults of a file's content


def zip_content(files: Mapping[str, bytes]) -> bytes:
    """An archive of these files: the same bytes for the same files, at any time."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)  # dated 1980, and not compressed, which differs among machines
            member.create_system = 3
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content)
    return packed.getvalue()


def check_zip(path: Path, members: Mapping[str, Check]) -> list[str]:
    """Every fault of an archive that is to hold exactly these files at its top, each checked by its function.

    Names are such as RTE.tsv, or captions_val2014_<alg>_results.json with the same <alg> in all.

    Raises:
        InputDataError: there is no such file.
    """
    content = read_content(path)
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return list(_faults(archive, members))
    except zipfile.BadZipFile as error:
        kind = "a damaged or cut off zip archive" if content.startswith(b"PK") else "no zip archive"
        return [f"is {kind} ({error}). Pack {' and '.join(members)} again"]


def _faults(archive: zipfile.ZipFile, members: Mapping[str, Check]) -> Iterator[str]:
    faults: Faults = defaultdict(list)
    found: dict[str, Named] = {}
    for member in archive.infolist():
        name = member.orig_filename
        named = template_of(name, members)
        if "__MACOSX" in name or name.endswith(".DS_Store"):
            faults["files that macOS adds (take them out with zip -d)"].append(name)
        elif name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            faults["absolute paths or paths with .."].append(name)
        elif "/" in name or "\\" in name:
            faults["files in a folder, which belong at the archive's top (pack with zip -j)"].append(name)
        elif named is None:
            faults[f"files other than {' and '.join(members)}"].append(name)
        elif named.template in found:
            faults[f"more than one {named.template}"].append(name)
        else:
            found[named.template] = named
            yield from (f"{name}: {fault}" for fault in _member_faults(archive, member, members[named.template]))
    yield from sentences(faults)
    missing = [template for template in members if template not in found]
    if missing:
        yield f"no {' and no '.join(missing)} at the archive's top"
    algorithms = {named.algorithm for named in found.values()}
    if len(algorithms) > 1:
        yield f"the names of its files differ in <alg>: {' and '.join(sorted(algorithms))}"


def _member_faults(archive: zipfile.ZipFile, member: zipfile.ZipInfo, check: Check) -> list[str]:
    if member.flag_bits & 1:
        return ["is encrypted. Pack it without a password"]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return ["is not packed by deflate, which every zip program does by default"]
    if member.file_size > LARGEST:
        return [f"has {member.file_size:,} bytes unpacked, far more than such a file takes"]
    try:
        content = archive.read(member)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        return [f"is damaged ({error}). Pack it again"]
    return check(content)
