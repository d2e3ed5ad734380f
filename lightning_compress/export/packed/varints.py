"""Whole numbers in as few bytes as they need, read back with every length checked."""

from __future__ import annotations

from lightning_compress.errors import CompressionError

LARGEST = 1 << 48
"""No count, shape or length in a file reaches this."""


class Writer:
    """Appends numbers and bytes.

    Attributes:
        data: What was written so far.
    """

    def __init__(self) -> None:
        self.data = bytearray()

    def number(self, value: int) -> None:
        """A number from 0, seven bits to a byte, low bits first; the high bit says that another byte follows.

        Example:
            >>> writer = Writer()
            >>> writer.number(300)
            >>> list(writer.data)
            [172, 2]
        """
        while value > 127:
            self.data.append(value & 127 | 128)
            value >>= 7
        self.data.append(value)

    def byte(self, value: int) -> None:
        """One byte."""
        self.data.append(value)

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.data += data


class Reader:
    """Reads what a ``Writer`` wrote.

    Args:
        data: The bytes.
        where: File and field, for messages.
    """

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self.where = where
        self._data = memoryview(data)
        self._at = 0

    def number(self, field: str, largest: int = LARGEST) -> int:
        """A number of at most ``largest``."""
        value = shift = 0
        while True:
            byte = self.byte(field)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 63:
                raise self.damaged(field, "a number that never ends")
        if value > largest:
            raise self.damaged(field, f"{value}, more than the {largest} that can be")
        return value

    def byte(self, field: str, largest: int = 255) -> int:
        """One byte of at most ``largest``."""
        value = self.view(1, field)[0]
        if value > largest:
            raise self.damaged(field, f"{value}, more than the {largest} that can be")
        return value

    def raw(self, count: int, field: str) -> bytes:
        """Bytes as they are."""
        return bytes(self.view(count, field))

    def view(self, count: int, field: str) -> memoryview:
        """Bytes as they are, not copied."""
        if count > len(self._data) - self._at:
            raise self.damaged(field, f"{len(self._data) - self._at} bytes where {count} should be")
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def rest(self) -> bytes:
        """Everything that was not read yet."""
        return self.raw(len(self._data) - self._at, "rest")

    def end(self) -> None:
        """Check that everything was read."""
        if self._at != len(self._data):
            raise self.damaged("end", f"{len(self._data) - self._at} bytes too many")

    def damaged(self, field: str, found: str) -> CompressionError:
        """The error for a field that cannot be right."""
        return CompressionError(f"{self.where}: damaged, {field} is {found}. Export the model again.")
