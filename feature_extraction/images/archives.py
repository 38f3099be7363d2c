"""Images inside uncompressed tar archives, such as the shards of webdataset, read in place. Imports no torch.

Nothing is ever unpacked, so that what a member's name says about folders does not matter.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from feature_extraction.errors import InputDataError
from feature_extraction.images.decoding import ImageFile, ImageRejected, refuse_large
from feature_extraction.images.names import is_image_name


class TarMember(NamedTuple):
    """Where an image lies in an archive."""

    name: str
    offset: int  # bytes from the archive's beginning
    size: int  # bytes
    fault: str = ""  # why it is no image although its name says so

    def read(self, path: Path) -> bytes:
        """The member's bytes.

        Raises:
            ImageRejected: a link or another thing without bytes of its own, or too many of them.
            EOFError: the archive ends before.
        """
        if self.fault:
            raise ImageRejected(self.fault)
        refuse_large(self.size)
        with path.open("rb") as archive:
            archive.seek(self.offset)
            data = archive.read(self.size)
        if len(data) < self.size:
            raise EOFError("the archive has become shorter since it was listed")
        return data


def archive_images(path: Path) -> list[ImageFile]:
    """The members that claim to be images, in the archive's order; hidden ones are left out.

    The id is the member's name without folders and without the last suffix.

    Raises:
        InputDataError: the archive is damaged or truncated, or no tar archive at all.
    """
    images = []
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                base = PurePosixPath(member.name)
                if is_image_name(base.name):
                    part = TarMember(member.name, member.offset_data, member.size, _fault(member))
                    images.append(ImageFile(base.stem, path, part))
            end = archive.offset
        # A damaged header in the middle ends the list as quietly as the archive's end does.
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end of archive at byte {end:,}")
    except tarfile.TarError as error:
        raise InputDataError(
            f"{path} is damaged, truncated or no tar archive: {error}. Fetch or make it again"
        ) from error
    return images


def _fault(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}, which is not followed"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    return ""
