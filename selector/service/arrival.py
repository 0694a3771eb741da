"""How much of a request has arrived: what is needed to know before a thread is given to it, and no more.

What the bytes say is read once they are whole, by gunicorn's parser, which also refuses what is malformed: here that counts
as whole, so that it gets its answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

MAX_HEAD_BYTES = 544 * 1024
"""Of a request line and its headers: above what the server allows, so that it is the server that refuses more."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
_LONGEST_SIZE = 1024  # of the line before a chunk


class Arrival:
    """Of one request, on the connection's thread. `whole`: it may be read now without waiting for its sender. So may a head
    that is too long, and one of a body with more bytes than `max_body` says of its path and itself: they are refused without
    reading on."""

    def __init__(self, max_body: Callable[[str, bytes], int], clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes = bytearray()
        self.begun: float | None = None  # monotonic, when the first byte came
        self.whole = False
        self.cut = False  # whole for us, but there is more to come, which nobody will read
        self.waits_for_consent = False  # the sender sends its body when it is told to (Expect: 100-continue)
        self._most_of, self._clock = max_body, clock
        self._max_body = 0
        self._head = 0  # where the head ends, 0: not yet
        self._ends: int | None = None  # where the body ends, None: it comes in chunks
        self._chunk = 0  # where the next chunk begins

    def add(self, received: bytes) -> None:
        if self.begun is None:
            self.begun = self._clock()
        searched = max(0, len(self.bytes) - 3)
        self.bytes += received
        if not self._head:
            found = self.bytes.find(b"\r\n\r\n", searched)
            if found < 0:
                self.whole = self.cut = len(self.bytes) > MAX_HEAD_BYTES
                return
            self._head = self._chunk = found + 4
            self._read_head()
        self.whole = self.cut or self._has_body()

    def end(self) -> None:
        """The sender will send no more."""
        self.whole = self.cut = True

    def path(self) -> tuple[str, str]:
        """Method and path, without the query; empty where they cannot be read."""
        words = bytes(self.bytes[:4096].split(b"\r\n", 1)[0]).split(b" ")
        return (words[0].decode("latin-1"), words[1].split(b"?", 1)[0].decode("latin-1")) if len(words) == 3 else ("", "")

    def _read_head(self) -> None:
        head = bytes(self.bytes[: self._head])
        self._max_body = self._most_of(self.path()[1], head)
        lengths = _LENGTH.findall(head)
        if _CHUNKED.search(head):
            self._ends, self.cut = None, bool(lengths)  # both: nobody knows where it ends
        else:
            length = int(lengths[0]) if len(lengths) == 1 else 0
            self._ends = self._head + length
            self.cut = length > self._max_body
        consent = _EXPECT.search(head)
        if consent is not None and not self.cut and not self._has_body():
            self.waits_for_consent = True
            del self.bytes[consent.start() + 2 : consent.end()]  # the server would give its consent a second time
            removed = consent.end() - consent.start() - 2
            self._head, self._chunk = self._head - removed, self._chunk - removed
            self._ends = None if self._ends is None else self._ends - removed

    def _has_body(self) -> bool:
        if self._ends is not None:
            return len(self.bytes) >= self._ends
        while True:
            line = self.bytes.find(b"\r\n", self._chunk, self._chunk + _LONGEST_SIZE)
            if line < 0:
                self.cut = len(self.bytes) > self._chunk + _LONGEST_SIZE
                return self.cut
            try:
                size = int(bytes(self.bytes[self._chunk : line]).split(b";")[0], 16)
            except ValueError:
                self.cut = True
                return True
            if size <= 0:  # trailers follow, and an empty line
                ended = self.bytes.find(b"\r\n\r\n", line) >= 0
                self.cut = size < 0 or (not ended and len(self.bytes) > line + MAX_HEAD_BYTES)
                return ended or self.cut
            if self._chunk + size - self._head > self._max_body + MAX_HEAD_BYTES:
                self.cut = True
                return True
            end = line + 2 + size
            if len(self.bytes) < end + 2:
                return False
            if self.bytes[end : end + 2] != b"\r\n":
                self.cut = True
                return True
            self._chunk = end + 2
