"""Real kills and real full disks for tests: forked processes that the system stops at a
chosen moment.
"""

import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import utils

# what Python tells of itself, by its names
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def killed(step: int, work) -> bool:
    """Run `work` in a process that is killed at its step-th file operation; False when
    it ended before.
    """
    return _child(lambda: (_die_at(step), work())) == -signal.SIGKILL


def killed_after(seconds: float, work, ready) -> None:
    """Run `work` in a process that is killed so many seconds after `ready()` became
    true.
    """

    def child():
        threading.Thread(target=kill, daemon=True).start()
        work()

    def kill():
        while not ready():
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    _child(child)


def operations(work) -> int:
    """How many file operations `work` takes; it runs in a process of its own."""
    reader, writer = os.pipe()
    write = os.write

    def child():
        left = _die_at(sys.maxsize)
        work()
        write(writer, str(sys.maxsize - left[0]).encode())

    _child(child)
    os.close(writer)
    with open(reader) as file:
        return int(file.read())


def killed_in_writing(size: int, work) -> bool:
    """Run `work` in a process that is killed in the middle of the first file that grows
    beyond `size` bytes.
    """

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        _allow(size)
        work()

    return _child(child) == -signal.SIGXFSZ


def on_full_disk(work, size: int = 2000) -> str:
    """What a student reads when `work` runs in a process whose files may have `size`
    bytes; "" when it ended well.

    The system then answers as a full disk does, in the middle of a write: a short
    write, then an error."""
    return error_of(lambda: (_allow(size), work()))


def error_of(work) -> str:
    """The message of the CourseError with which `work` ends in a process of its own; ""
    when it ends well.
    """
    reader, writer = os.pipe()  # not a file: that may be full as well

    def child():
        try:
            work()
        except utils.CourseError as error:
            os.write(writer, str(error).encode())
        except BaseException as error:
            os.write(writer, f"not for people: {error!r}".encode())

    _child(child)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        return file.read()


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders anywhere below `folder`."""
    return sorted(
        path
        for path in folder.rglob(".*")
        if path.suffix == ".tmp" or path.name.endswith((".drawing",))
    )


def told(message: str, path: Path) -> bool:
    """Which file, why, how much is free, what to do, and that nothing was lost: in two
    sentences.
    """
    return (
        message.startswith(f"{path} could not be written (")
        and " MB are free on that disk)" in message
        and ": free some space there" in message
        and message.count(". ") == 1
    )


def _allow(size: int) -> None:
    # a death by signal shall leave no core file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )


def _child(work) -> int:
    """Exit code of a forked process that runs `work`, minus the signal if
    one ended it.
    """
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
            work()
            os._exit(0)
        except BaseException:  # a test that expects a kill shall show what came instead
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(step: int) -> list[int]:
    """From now on, SIGKILL comes at the step-th file operation of this process, in the
    middle where it has one.

    Returns the number of operations that are left until then, in a list that is kept up
    to date."""
    left = [step]

    def count(cut=lambda: None):
        left[0] -= 1
        if left[0] == 0:
            cut()
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event in CHANGES or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            count()

    def deadly(owner, name, cut):
        function = getattr(owner, name)

        def wrapped(*arguments, **options):
            count(lambda: cut(function, *arguments))
            return function(*arguments, **options)

        setattr(owner, name, wrapped)

    def half(write, target, content, *rest):
        write(target, content[: len(content) // 2])

    deadly(os, "write", half)
    deadly(Path, "write_bytes", half)
    deadly(Path, "write_text", half)
    deadly(os, "close", lambda *_: None)
    deadly(
        shutil,
        "copy",
        lambda _, source, target: Path(target).write_bytes(
            Path(source).read_bytes()[:50_000]
        ),
    )
    sys.addaudithook(hook)
    return left
