"""Fetching a file whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.atomic_write import replacing

_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 1 << 20


def fetch(url: str, path: Path, algorithm: Literal["md5", "sha256"], digest: str) -> None:
    """Download a file under a temporary name, check it, and only then give it its name.

    Args:
        url: Where from.
        path: Where to; its directory is made.
        algorithm: How the digest was made.
        digest: Hexadecimal digest of the published file.

    Raises:
        CompressionError: It cannot be had, or it is not the published file.
    """
    with replacing(path) as partial:
        seen = hashlib.new(algorithm)
        try:
            # Whatever it is fetched from, the digest decides whether it is taken.
            with partial.open("wb") as file, urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
                while chunk := answer.read(_CHUNK_BYTES):
                    seen.update(chunk)
                    file.write(chunk)
        except (urllib.error.URLError, TimeoutError) as error:
            raise CompressionError(
                f"data.download: {url} cannot be fetched ({error}). Try again, or put the file at {path} by hand."
            ) from error
        if seen.hexdigest() != digest:
            raise CompressionError(
                f"data.download: {url} has the {algorithm} {seen.hexdigest()} and the published file has {digest}. "
                f"Put the right file at {path} by hand."
            )
