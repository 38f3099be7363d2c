"""What the names of image files say. Imports no torch."""

from __future__ import annotations

from os.path import splitext

# Files that claim to be images. Those of a format that is not decoded are listed too, so that they end in the list of
# rejected images and not in silence.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".psd", ".ppm", ".pgm", ".tga", ".ico"),
)


def is_image_name(name: str) -> bool:
    """Whether a file of this name, without folders, claims to be an image; hidden files do not."""
    return splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def image_stem(name: str) -> str:
    """The name without an image's suffix."""
    stem, suffix = splitext(name)
    return stem if suffix.lower() in SUFFIXES else name
