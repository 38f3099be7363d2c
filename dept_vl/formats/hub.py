"""Data sets of the Hugging Face hub: parquet files through ``datasets``, which runs no code of a repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dept_vl.command_line import say
from dept_vl.formats.rows import HubSource, Row
from feature_extraction.errors import DamagedError, InputDataError

CONVERTED = "refs/convert/parquet"  # the hub's own conversion of a repository that has a loading script
BY_HAND = "or put the official files into a folder and give it as --data"


class HubSplit(NamedTuple):
    """One split of a hub's data set."""

    size: int  # rows
    class_names: dict[str, list[str]]  # column: what its numbers from 0 mean, where they are classes
    rows: Iterator[Row]  # in the hub's order; classes are numbers, -1 where they are withheld


class HubData(NamedTuple):
    """What a hub has of a data set."""

    revision: str | None  # the commit; None of a local folder
    splits: dict[str, HubSplit]


def open_hub(source: HubSource, *, revision: str | None = None) -> HubData:
    """Download a data set, or find it in the library's cache.

    Args:
        source: the repository, or a local folder of the same layout, and the splits that are wanted of it.
        revision: a commit, tag or branch; None: the main branch or, where that has a loading script, its conversion.

    Raises:
        InputDataError: the hub cannot be reached, or has no such data set, configuration or split.
        DamagedError: its files cannot be read.
        OSError: the disk is full.
    """
    import datasets

    local = Path(source.repository).is_dir()
    # The library takes a local folder for the one in its cache, also where files have changed since; so that has none.
    with _explained(source), TemporaryDirectory() as scratch:
        cache = scratch if local else None
        try:
            builder = datasets.load_dataset_builder(
                source.repository, source.config, revision=revision, cache_dir=cache
            )
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            say(f"{source.repository} has a loading script, which is not run: taking the hub's conversion to parquet")
            builder = datasets.load_dataset_builder(
                source.repository, data_files=_converted_files(source), revision=CONVERTED, cache_dir=cache
            )
        builder.download_and_prepare()
        found = builder.as_dataset(in_memory=local)
    wanted = list(dict.fromkeys(source.splits.values()))
    missing = [split for split in wanted if split not in found]
    if missing:
        raise InputDataError(
            f"{_name(source)} has no split {' and no split '.join(missing)}. It has: {', '.join(found)}. Give another "
            f"copy of the data set as --repository, {BY_HAND}"
        )
    return HubData(None if local else str(builder.hash), {split: _split(found[split]) for split in wanted})


def _converted_files(source: HubSource) -> dict[str, str]:
    """The files of each split in the conversion."""
    return {split: f"{source.config or 'default'}/{split}/*.parquet" for split in source.splits.values()}


def _split(dataset: Any) -> HubSplit:  # noqa: ANN401 - datasets has no types
    features = dataset.features.items()
    names = {column: list(feature.names) for column, feature in features if hasattr(feature, "names")}
    return HubSplit(size=len(dataset), class_names=names, rows=iter(dataset))


@contextmanager
def _explained(source: HubSource) -> Iterator[None]:
    """The library's failures as ours, with the next step."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except ConnectionError as error:
        raise InputDataError(
            f"{source.repository} is not in the cache, and the hub cannot be reached: {_line(error)}. Fetch it where "
            f"there is a connection and HF_HUB_OFFLINE is not set, {BY_HAND}"
        ) from error
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise InputDataError(
            f"{_name(source)} is no data set that can be read: {_line(error)}. Check --repository and --revision (a "
            f"private one needs HF_TOKEN), {BY_HAND}"
        ) from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the connection's
            raise
        raise InputDataError(
            f"{_name(source)} could not be downloaded: {_line(error)}. Run the same command again, {BY_HAND}"
        ) from error
    except ValueError as error:
        raise InputDataError(f"{_name(source)} cannot be loaded: {_line(error)}. Check --config, {BY_HAND}") from error
    except DatasetsError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise cause from error
        raise DamagedError(f"{_name(source)} cannot be read: {_line(cause)}. Fetch it again, {BY_HAND}") from error


def _name(source: HubSource) -> str:
    return f"{source.repository} ({source.config})" if source.config else source.repository


def _line(error: BaseException) -> str:
    """What the library says, in one line without its period."""
    return " ".join(str(error).split()).rstrip(".")
