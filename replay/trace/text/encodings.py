"""Text that is encoded otherwise than byte by byte: UTF-16, and the quoted-printable and base64 of mail.

Also lines that end in a carriage return alone.

What it is shows at its beginning; it is decoded while it is read, each line to one line, so that the numbers
of lines stay those of the file (but for base64, whose lines are none).
"""

from __future__ import annotations

import binascii
import codecs
import re
from typing import Protocol

from replay.trace.source import Source

HEAD_BYTES = 1 << 16
"""The beginning of a text, by which its encoding is told."""
_READ_BYTES = 1 << 16
_TEXT_BYTES = frozenset(b"\t\r\n" + bytes(range(32, 127)))

_TRANSFER = re.compile(rb"[ \t>]*content-transfer-encoding:[ \t]*([\w-]+)\s*", re.IGNORECASE)
_TYPE = re.compile(rb"[ \t>]*content-type:[ \t]*([\w-]+)/", re.IGNORECASE)
_BOUNDARY = re.compile(rb"\bboundary=\"?([^\";\r\n]+)", re.IGNORECASE)
# without the headers of a mail: an event's line that a soft break ends
_CUT_EVENT = re.compile(rb"\d\.\d{6,9}: (?!tracing_mark_write)[^\n]*=\r?\n")
_SOFT_BREAK = re.compile(rb"=[ \t]*\r?\n")
_QUOTE = re.compile(rb"(?:[ \t]*>)+[ \t]?")
_LONE_RETURN = re.compile(rb"\r(?![\r\n])")
_QUOTED_BYTE = re.compile(rb"=([0-9A-Fa-f]{2})")


class Decoder(Protocol):
    """Turns bytes into those of UTF-8 text, piece by piece."""

    def decode(self, data: bytes, final: bool) -> bytes:
        """What is known of the text by now; ``final``: nothing comes any more."""


class DecodedSource:
    """A source of text whose bytes a decoder turns into others, read as a ``replay.trace.source.Source``."""

    def __init__(self, source: Source, decoder: Decoder) -> None:
        self.path, self.format, self.size = source.path, source.format, source.size
        self._source, self._decoder = source, decoder
        self._pending = memoryview(b"")
        self._is_at_end = False

    def read_into(self, target: memoryview) -> int:
        """Fill the beginning of ``target``: number of bytes, 0 at the end."""
        buf = bytearray(_READ_BYTES)
        while not self._pending and not self._is_at_end:
            count = self._source.read_into(memoryview(buf))
            self._is_at_end = count == 0
            self._pending = memoryview(self._decoder.decode(bytes(buf[:count]), self._is_at_end))
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def plain_file(self) -> int | None:
        """None: there is no file of the decoded text."""
        return None

    def go_to(self, place: int) -> None:
        """Never called: there is no place to go to."""

    def position(self) -> int:
        """Bytes of the file that have been read."""
        return self._source.position()

    def close(self) -> None:
        """Close the source that is decoded."""
        self._source.close()


def decoded(source: Source) -> Source | DecodedSource:
    """``source``, or one that decodes it if its beginning shows an encoding."""
    decoder = _decoder_of(source.peek(HEAD_BYTES))
    return source if decoder is None else DecodedSource(source, decoder)


def _decoder_of(head: bytes) -> Decoder | None:
    if codec := _utf_codec(head):
        return _Utf(codec)
    if b"\r" in head and len(_LONE_RETURN.findall(head, 0, len(head) - 1)) > head.count(b"\n"):
        return _Returns()
    has_headers = b"ransfer-" in head or b"RANSFER-" in head
    if has_headers and re.search(rb"^" + _TRANSFER.pattern, head, re.IGNORECASE | re.MULTILINE):
        return _Mail(b"7bit")
    if (b"=\n" in head or b"=\r\n" in head) and _CUT_EVENT.search(head):
        return _Mail(b"quoted-printable")
    return None


def _utf_codec(head: bytes) -> str | None:
    """The codec of text in units of 2 or 4 bytes, by the mark at its beginning or the zeros of letters."""
    for mark, codec in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return codec
    first = head[:64]
    if len(first) >= 8 and 0 in first:
        for odd, codec in ((0, "utf-16-be"), (1, "utf-16-le")):
            zeros, letters = first[odd::2], first[1 - odd :: 2]
            if not any(zeros) and not set(letters) - _TEXT_BYTES:
                return codec
    return None


class _Utf:
    def __init__(self, codec: str) -> None:
        self._decoder = codecs.getincrementaldecoder(codec)("replace")

    def decode(self, data: bytes, final: bool) -> bytes:
        return self._decoder.decode(data, final).encode(errors="replace")


class _Returns:
    """A carriage return that no newline follows ends a line."""

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, data: bytes, final: bool) -> bytes:
        data = self._rest + data
        self._rest = b"\r" if data.endswith(b"\r") and not final else b""
        return _LONE_RETURN.sub(b"\n", data[: len(data) - len(self._rest)])


class _Mail:
    """Mails one after the other (mbox), the parts of each in its encoding.

    A line that soft breaks cut becomes one line, and blank ones for the parts that it had more.  A reply that
    quotes the encoded text has its quotes before each part.
    """

    def __init__(self, encoding: bytes) -> None:
        self._encoding = encoding  # of the lines at hand
        self._next: bytes | None = None  # that of the part whose headers are being read
        self._is_text = True  # as the headers of that part say
        self._boundaries: set[bytes] = set()
        self._rest = b""  # of a line that has not ended
        self._cut: list[bytes] = []  # parts of a line so far, without their soft breaks

    def decode(self, data: bytes, final: bool) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        text = b"".join([self._line(line + b"\n") for line in lines])
        return text + self._line(self._rest) + self._joined(b"") if final else text

    def _line(self, line: bytes) -> bytes:
        if self._is_border(line):
            end = b"\n" if self._encoding == b"base64" else self._joined(b"")
            self._encoding, self._next, self._is_text = b"7bit", None, True
            return end + line
        if found := _BOUNDARY.search(line):
            self._boundaries.add(found[1].strip())
        if found := _TYPE.match(line):
            self._is_text = found[1].lower() == b"text"
        if found := _TRANSFER.fullmatch(line):
            self._next = found[1].lower()
        elif self._next is not None and not line.strip(b"> \t\r\n"):
            self._encoding, self._next = self._next, None
        elif self._encoding == b"quoted-printable":
            if self._cut and (quote := _QUOTE.match(self._cut[0])) and line.startswith(quote[0]):
                line = line[quote.end() :]
            if found := _SOFT_BREAK.search(line):
                self._cut.append(line[: found.start()])
                return b""
            return self._joined(line)
        elif self._encoding == b"base64":
            return _from_base64(line) if self._is_text else b"\n"
        return line

    def _is_border(self, line: bytes) -> bool:
        """A mail or a part of one begins here, or its last part ends."""
        if line.startswith(b"From "):
            return True
        return line.startswith(b"--") and line[2:].strip().removesuffix(b"--") in self._boundaries

    def _joined(self, line: bytes) -> bytes:
        """The parts that were cut off and ``line``, decoded, and a blank line for each of these parts."""
        parts, self._cut = self._cut, []
        text = _QUOTED_BYTE.sub(_quoted_byte, b"".join([*parts, line]))
        return text + b"\n" * len(parts)


def _quoted_byte(found: re.Match[bytes]) -> bytes:
    byte = bytes([int(found[1], 16)])
    return b" " if byte in b"\r\n" else byte  # a line stays one


def _from_base64(line: bytes) -> bytes:
    try:
        return binascii.a2b_base64(line)
    except binascii.Error:
        return b"\n"
