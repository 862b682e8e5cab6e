"""Parts of an examination, each within a stated time and memory.

On Linux they run beside this process: what a part hangs on, swallows or crashes at ends
its process, is said of that part, and the next one begins afresh. Elsewhere they run
here, and only errors are caught.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from tools.grading.sandbox import GIB, PDEATHSIG, prctl
from tools.shared.foreign import MIB, shown

SECONDS, TOGETHER, LEAST = 60, 300, 5  # of one part; of all; of one when all are late
MEMORY = 2 * GIB  # beside what this process has
SAID = 32 * MIB  # of what one part gives
Part = tuple[str, list, str]  # name, values, why it broke off


def each(
    parts: dict[str, Callable[[], Iterable]], seconds: float | None = None
) -> Iterator[Part]:
    """Run parts in their order: for each its name, the values that it gave until it
    ended, and why it broke off, "" where it did not.

    Values are those of JSON: nothing else leaves a process.
    """
    seconds = seconds or SECONDS
    left, until = list(parts.items()), time.monotonic() + max(TOGETHER, seconds)
    run = _beside if sys.platform == "linux" else _here
    while left:
        for part in run(left, seconds, until):
            left = left[1:]
            yield part


def _here(parts: list, seconds: float, until: float) -> Iterator[Part]:
    for name, part in parts:
        values, why = [], ""
        try:
            values.extend(part())
        except Exception as error:  # whatever a foreign file brings about
            why = _told(error)
        yield name, values, why


def _told(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needed more than {MEMORY / GIB:.0f} GiB of memory"
    return f"{type(error).__name__}: {shown(error)[:80]}"


def _beside(parts: list, seconds: float, until: float) -> Iterator[Part]:
    """The parts that one process ends, and the one that ends it."""
    out, into = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(out)
        _work(parts, into)
    os.close(into)
    lines = _Lines(out)
    try:
        for name, _ in parts:
            now = time.monotonic()
            allowed = min(seconds, max(until - now, LEAST))
            values, why = _heard(lines, now + allowed)
            if why == "time":
                why = f"it took more than {allowed:.0f} s"
            yield name, values, why
            if why:
                return
    finally:
        os.close(out)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _heard(lines: "_Lines", deadline: float) -> tuple[list, str]:
    """What one part gives, and why it broke off."""
    values, left = [], SAID
    while (line := lines.next(deadline, left)) is not None:
        if not line:
            return values, "it ended its process, most often for want of memory"
        left -= len(line)
        if left < 0:
            return values, f"it had more than {SAID // MIB} MiB to say"
        told = json.loads(line)
        if isinstance(told, str):
            return values, told
        values += told
    return values, "time"


class _Lines:
    """The lines that come through a pipe."""

    def __init__(self, pipe: int):
        self.pipe, self.received = pipe, bytearray()

    def next(self, deadline: float, most: int) -> bytes | None:
        """The next line, or what there is of one that is too long; empty at the end,
        None when the time is over.
        """
        searched = 0
        while (end := self.received.find(b"\n", searched)) < 0:
            searched = len(self.received)
            if searched > most:
                return bytes(self.received)
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.pipe], [], [], left)[0]:
                return None
            piece = os.read(self.pipe, 1 << 20)
            self.received += piece
            if not piece:
                return b""
        line = bytes(self.received[: end + 1])
        del self.received[: end + 1]
        return line


# --------------------------------------------------------------------------------------
# In that process
# --------------------------------------------------------------------------------------


def _work(parts: list, pipe: int) -> None:
    """Run parts, a line for each value and one for each end; never returns."""
    try:
        prctl(PDEATHSIG, signal.SIGKILL)
        _limit_memory()
        for _, part in parts:
            why = _one(part, pipe)
            _write(pipe, why)
            if why:  # it may have left half of something, or the memory full
                break
    finally:  # nothing of the parent's is closed, written or cleaned up here
        os._exit(0)


def _one(part: Callable[[], Iterable], pipe: int) -> str:
    try:
        for value in part():
            _write(pipe, [value])
    except Exception as error:  # whatever a foreign file brings about
        return _told(error)
    return ""


def _write(pipe: int, told) -> None:
    line = json.dumps(told).encode() + b"\n"
    while line:
        line = line[os.write(pipe, line) :]


def _limit_memory() -> None:
    import resource

    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[5])  # private and writable
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
