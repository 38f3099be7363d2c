from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.images.archives import TarMember
from feature_extraction.images.decoding import LARGEST_FILE, ImageFile, ImageRejected, decode_image
from feature_extraction.images.sources import list_images


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(buffer, format="png")
    return buffer.getvalue()


def number_of(image: ImageFile) -> int:
    return int(decode_image(image)[0, 0, 0])


def ids(source: Path | str) -> list[str]:
    return [image.image_id for image in list_images(source)]


def archive(path: Path, *members: tuple[str | tarfile.TarInfo, bytes], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


# --- folders and lists


def test_a_folder_is_listed_with_subfolders_sorted_by_id(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.png", "deep/a.v2.JPG", "deep/er/c.webp", "notes.txt", ".hidden.png", "d.tiff", "jpg"):
        (tmp_path / name).touch()
    assert [(image.image_id, image.path) for image in list_images(tmp_path)] == [
        ("a.v2", tmp_path / "deep/a.v2.JPG"),
        ("b", tmp_path / "b.png"),
        ("c", tmp_path / "deep/er/c.webp"),
        ("d", tmp_path / "d.tiff"),  # of no format that is decoded: it is to end in the list of rejected images
    ]


def test_a_folder_may_be_named_by_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert list_images(str(tmp_path)) == list_images(tmp_path)


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "deep" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    assert ids(tmp_path / "images") == ["a"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.png").touch()
    scan = os.scandir

    def refuse(path: Path | str) -> Iterator[os.DirEntry[str]]:  # the superuser may list it all the same
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputDataError, match=r"secret cannot be listed \(Permission denied\), .*rights to be read, or"):
        list_images(tmp_path)


def test_a_list_is_relative_to_its_own_folder(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbfx/2.png\r\n\n/abs/1.jpg\n")
    assert list_images(listing) == [("1", Path("/abs/1.jpg"), None), ("2", tmp_path / "x/2.png", None)]


def test_only_a_newline_ends_a_line_of_a_list(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\x0bd.png", " e .png", "f\rg.png", os.fsdecode(b"\xff.png")]
    (tmp_path / "list.txt").write_bytes(os.fsencode("\n".join(names)))
    assert {image.path.name for image in list_images(tmp_path / "list.txt")} == set(names)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No images in .*expected files ending in \.jpg.*--images takes a folder"):
        list_images(tmp_path)
    (tmp_path / "list.txt").touch()
    with pytest.raises(InputDataError, match=r"No images in .*lines of a list"):
        list_images(tmp_path / "list.txt")


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"There is no .*absent\. --images takes a folder of images.*\.txt list"):
        list_images(tmp_path / "absent")
    (tmp_path / "file.json").touch()
    with pytest.raises(InputDataError, match=r"file\.json is no list, archive or table of images\. --images takes"):
        list_images(tmp_path / "file.json")


def test_columns_of_what_is_no_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for options in ({"image_column": "image"}, {"id_column": "id"}):
        with pytest.raises(UsageError, match=r"is no table, so --image-column and --id-column mean nothing\. Leave"):
            list_images(tmp_path, **options)


def test_listing_loads_neither_torch_nor_datasets() -> None:
    code = "import sys, feature_extraction.images.sources; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- ids


def test_two_files_with_one_id_are_refused_and_both_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").touch()
    (tmp_path / "deep" / "a.jpg").touch()
    with pytest.raises(InputDataError, match=r"have the id 'a': .*/a\.png and .*/deep/a\.jpg\. .*rename one"):
        list_images(tmp_path)


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\na.png\n")
    with pytest.raises(InputDataError, match="have the id 'a'"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat.png", "cat.jpg"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}.png", "cafe\N{COMBINING ACUTE ACCENT}.png"),
        ("photo.png", "photo.png.jpg"),
        ("stra\N{LATIN SMALL LETTER SHARP S}e.png", "STRASSE.png"),
        ("\N{ANGSTROM SIGN}.png", "a\N{COMBINING RING ABOVE}.png"),
    ],
)
def test_ids_that_only_look_the_same_are_refused_and_both_named(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "list.txt").write_text(f"1/{one}\n2/{other}\n", encoding="utf-8")
    with pytest.raises(InputDataError) as failure:
        list_images(tmp_path / "list.txt")
    for path in (tmp_path / "1" / one, tmp_path / "2" / other):
        assert str(path) in str(failure.value)
        assert repr(path.stem) in str(failure.value)
    assert "Ids must differ in more than letter case, Unicode form or the suffix of an image" in str(failure.value)


def random_name(random: Random) -> str:
    """A file name of up to 251 bytes that any file system of Unix can hold."""
    alphabets = (
        "abc 019_-.",
        "\N{LATIN SMALL LETTER E WITH ACUTE}e\N{COMBINING ACUTE ACCENT}\N{COMBINING DIAERESIS}",
        "\N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH JOINER}",
        "\N{DOG FACE}\N{FAMILY}\N{MUSICAL SYMBOL G CLEF}",
        "".join(map(chr, range(0xDC80, 0xDD00))),  # bytes that are no UTF-8
        "\n\r\t\x7f\x1b\u2028\\:*?\"'<>|$();&%~#",
    )
    letters = "".join(random.choices(alphabets)) + "".join(random.choices(alphabets))
    name = "".join(random.choices(letters, k=random.choice([1, 3, 20, 250])))
    while len(os.fsencode(name)) > 251:
        name = name[:-1]
    # What is read from a disk comes back so: pairs of such bytes may make a character.
    return os.fsdecode(os.fsencode(name)).lstrip(".") or "x"


def test_a_thousand_odd_names_come_back_byte_for_byte(tmp_path: Path) -> None:
    random = Random(0)
    names: dict[str, str] = {}
    while len(names) < 1000:
        name = random_name(random)
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
        names.setdefault(folded, name)
    wanted = sorted(names.values())
    for name in wanted:
        Path(tmp_path, f"{name}.png").touch()
    assert ids(tmp_path) == wanted
    assert {image.path.name for image in list_images(tmp_path)} == {f"{name}.png" for name in wanted}

    members = [(f"{name}.png", png(row % 256)) for row, name in enumerate(wanted)]
    shard = archive(tmp_path / "shards" / "0.tar", *members, encoding="utf-8", errors="surrogateescape")
    found = list_images(shard)
    assert [image.image_id for image in found] == wanted
    assert [number_of(image) for image in found[::50]] == [row % 256 for row in range(0, 1000, 50)]


# --- archives


def test_images_of_an_archive_are_read_in_place(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", ("x/2.png", png(2)), ("x/2.json", b"{}"), ("1.PNG", png(1)), ("._1.png", b""))
    first, second = list_images(path)
    assert (first.image_id, second.image_id) == ("1", "2")
    assert (number_of(first), number_of(second)) == (1, 2)
    assert second.name == f"{path}: x/2.png"
    assert len(pickle.dumps(second)) < 300 + len(str(path))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_with_long_names_is_read(tmp_path: Path, kind: int) -> None:
    name = f"{'folder/' * 20}{'n' * 90}.png"
    (image,) = list_images(archive(tmp_path / "a.tar", (name, png(7)), format=kind))
    assert (image.image_id, number_of(image)) == ("n" * 90, 7)


def test_a_folder_of_shards_is_one_collection(tmp_path: Path) -> None:
    for shard in range(3):
        members = [(f"{shard}-{row}.png", png(10 * shard + row)) for row in range(4)]
        archive(tmp_path / f"part-{shard % 2}" / f"{shard:05d}.tar", *members)
    found = list_images(tmp_path)
    assert [image.image_id for image in found] == [f"{shard}-{row}" for shard in range(3) for row in range(4)]
    assert [number_of(image) for image in found] == [10 * shard + row for shard in range(3) for row in range(4)]


def test_images_in_a_folder_come_before_archives_beside_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    archive(tmp_path / "all.tar", ("a.png", png(1)))
    assert ids(tmp_path) == ["a"]


def test_one_id_in_two_shards_is_refused_and_both_places_named(tmp_path: Path) -> None:
    for shard in "01":
        archive(tmp_path / f"{shard}.tar", ("7.png", png(7)))
    with pytest.raises(InputDataError, match=r"the id '7': .*/0\.tar: 7\.png and .*/1\.tar: 7\.png\. Ids must be"):
        list_images(tmp_path)


def test_names_that_lead_out_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    names = ["../../etc/passwd.png", "/etc/shadow.png", "a/../../b.png", "c:\\x.png", "nul\0\u00e9.png"]
    path = archive(tmp_path / "a.tar", *((name, png(row)) for row, name in enumerate(names)), format=tarfile.PAX_FORMAT)
    before = sorted(tmp_path.rglob("*"))
    found = {image.image_id: number_of(image) for image in list_images(path)}
    assert found == {"passwd": 0, "shadow": 1, "b": 2, "c:\\x": 3, "nul\0\u00e9": 4}
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_in_an_archive_are_rejected_by_name(tmp_path: Path) -> None:
    kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [("good.png", png(1))]
    for name, kind in kinds.items():
        info = tarfile.TarInfo(f"{name}.png")
        info.type, info.linkname = kind, "good.png"
        members.append((info, b""))
    reasons = {}
    for image in list_images(archive(tmp_path / "a.tar", *members)):
        try:
            decode_image(image)
        except ImageRejected as error:
            reasons[image.image_id] = str(error).removeprefix(image.name)
    assert reasons == {
        "soft": ": a link to good.png, which is not followed",
        "hard": ": a link to good.png, which is not followed",
        "device": ": not a regular file",
        "pipe": ": not a regular file",
    }


def test_a_member_that_is_cut_off_or_too_large_is_rejected(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", ("a.png", png(1)))
    (image,) = list_images(path)
    path.write_bytes(path.read_bytes()[:530])
    with pytest.raises(ImageRejected, match=r"a\.tar: a\.png: damaged or truncated \(EOFError: the archive has become"):
        decode_image(image)
    huge = image._replace(part=TarMember("a.png", 512, LARGEST_FILE + 1))
    with pytest.raises(ImageRejected, match="400,000,001 bytes; of an image at most 400,000,000 are read"):
        decode_image(huge)
    path.unlink()
    with pytest.raises(ImageRejected, match=r"a\.png: cannot be read \(No such file or directory\)"):
        decode_image(image)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.6])
def test_a_truncated_archive_is_refused(tmp_path: Path, share: float) -> None:
    path = archive(tmp_path / "a.tar", *((f"{row}.png", png(row)) for row in range(6)))
    data = path.read_bytes()[: 6 * 1024]  # without the padding at the end
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputDataError, match=r"a\.tar is damaged, truncated or no tar archive: .*\. Fetch or make it"):
        list_images(path)


def test_a_damaged_header_does_not_end_the_list_in_silence(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", *((f"{row}.png", png(row)) for row in range(6)))
    data = bytearray(path.read_bytes())
    data[3 * 1024] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputDataError, match="no header and no end of archive at byte 3,072"):
        list_images(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.BZ2", "a.tar.xz", "a.tar.zst", "a.zip"])
@pytest.mark.parametrize("of_folder", [False, True])
def test_compressed_archives_are_refused_with_the_reason(tmp_path: Path, name: str, of_folder: bool) -> None:
    (tmp_path / name).touch()
    archive(tmp_path / "other.tar", ("a.png", b""))
    with pytest.raises(
        InputDataError, match=r" is compressed: .* not one by one\. Unpack it, or make it a plain \.tar"
    ):
        list_images(tmp_path if of_folder else tmp_path / name)
