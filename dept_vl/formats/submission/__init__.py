"""Leaderboard files of any tool: reading them, and naming every fault that a server refuses or scores as wrong.

Faults are sentences without the file's name, which the caller knows. Files are checked as they lie on the disk, byte
for byte: a server's reader is less forgiving than ours.
"""

from dept_vl.formats.submission.archive import check_zip, zip_content
from dept_vl.formats.submission.content import check_name, contents
from dept_vl.formats.submission.json_list import (
    JsonList,
    check_json_list,
    json_list_faults,
    read_json_list,
    write_json_list,
)
from dept_vl.formats.submission.label_csv import check_label_csv, read_label_csv

__all__ = [
    "JsonList",
    "check_json_list",
    "check_label_csv",
    "check_name",
    "check_zip",
    "contents",
    "json_list_faults",
    "read_json_list",
    "read_label_csv",
    "write_json_list",
    "zip_content",
]
