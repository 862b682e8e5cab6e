"""Run a command that is not trusted: without network, with the files it needs and no
others, and with no survivors.

bwrap  bubblewrap, where it is installed and holds: the system and Python read-only, the
       work folder, a network of the loopback alone, no other processes.
plain  Where it is not: a clean environment, limits and a watch over the processes.
       Network and files are NOT closed.

In both the environment is an allow-list, HOME and TMPDIR lie in the work folder, core
files are off, a file may have 4 GiB, a process as much private memory as the machine
has (a limit on addresses would stop torch, which reserves far more than it uses), and
when memory runs out the kernel takes these processes first. What all processes hold,
how many they are and what they write is watched from outside. The kernel refuses
sockets that no network namespace closes, keys, and the ring that makes sockets of its
own. GPUs stay reachable, and with them their drivers. None of this is proof against
somebody who attacks the kernel."""

import ctypes
import os
import platform
import shutil
import signal
import site
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

GIB = 2**30
SYSTEM = (  # programs, libraries, fonts, time, names; nothing that tells of people
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"),
    *("/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/ld.so.conf"),
    *("/etc/ld.so.conf.d", "/etc/localtime", "/etc/mime.types", "/etc/ssl"),
    *("/etc/hosts", "/etc/nsswitch.conf"),  # what localhost is
    "/sys/devices/system",  # how many cores there are
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
GPUS = ("nvidia*", "dri", "kfd")
OF_GPUS = ("/sys/bus/pci", "/sys/class/drm", "/sys/class/kfd", "/sys/devices")
OF_GPUS += ("/sys/module/nvidia", "/etc/OpenCL", "/etc/vulkan", "/opt/rocm")
PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "COURSE_THREADS", "ORT_DISABLE_TELEMETRY"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"),
)
LAYERS = {
    "bwrap": (
        "bubblewrap: no network, only the files it needs (read-only), processes of"
        " its own"
    ),
    "plain": (
        "NOT CLOSED: bubblewrap is not installed here, or does not work. There is no"
        " sandbox: the code could reach the network and every file of this account."
        " Clean environment, limits and a watch over processes only. Check submissions"
        " that you do not trust on another machine"
    ),
}
TAIL = 32768  # bytes of output that are kept
# Of a run's processes together. The course needs a hundred threads, less memory than
# Colab has, and less disk than its images.
MAX_TASKS, MAX_MEMORY, MAX_WRITTEN = 2000, 12 * GIB, 12 * GIB
WHY = {
    "time": "{limit:.0f} s were over",
    "disk": "the disk was nearly full",
    "written": f"it had written more than {MAX_WRITTEN // GIB} GiB",
    "memory": f"it held {MAX_MEMORY // GIB} GiB of memory, or nearly all that is here",
    "tasks": f"it had started more than {MAX_TASKS:,} processes and threads",
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes
    ----------
    rc : int
        Its exit status, negative for the signal that ended it.
    tail : str
        The last of what it printed.
    stopped : str
        Why it was stopped, a key of WHY; "" if it was not.
    seconds : float
    layer : str
        A key of LAYERS.
    """

    rc: int
    tail: str
    stopped: str
    seconds: float
    layer: str

    @property
    def timed_out(self) -> bool:
        return self.stopped == "time"

    def why(self, limit: float) -> str:
        """Why it was stopped, after so many seconds at most."""
        return WHY[self.stopped].format(limit=limit)


def run(
    command: list[str],
    folder: Path,
    limit: float,
    *,
    readable=(),
    environment=None,
    layer=None,
) -> Outcome:
    """Run `command` in `folder`, the only place it may write to, for at most `limit`
    seconds.

    Parameters
    ----------
    command : list of str
    folder : Path
        Its working folder; HOME and TMPDIR are made below it.
    limit : float
        Seconds; then it and every process that it has started are killed.
    readable : sequence of paths
        What it may read besides the system and Python.
    environment : dict, optional
        Variables on top of those of PASSED_ON. Nothing else of this process's
        environment is seen.
    layer : str, optional
        One of LAYERS; the best that works here when None.
    """
    if os.name != "posix":
        raise OSError(
            "foreign code is run on Linux and macOS only: use Colab, or WSL on Windows"
        )
    folder, layer = Path(folder).resolve(), layer or best_layer()
    if layer == "bwrap":
        command = [*entrance(folder, readable), *command]
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve()), layer, *command],
        env=_environment(folder, environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return _attend(process, folder, limit, layer)


PROBE = """
import os, socket, sys
try:
    sys.exit(bool(socket.socket(40, socket.SOCK_STREAM)))  # to the host of a machine
except OSError:
    pass
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), 5)
open("inside", "w").close()
networks = [name for _, name in socket.if_nameindex()]
sys.exit(3 if os.path.exists(sys.argv[1]) or networks != ["lo"] else 0)
"""


@cache
def best_layer() -> str:
    """bwrap, where a small program runs in it, finds its own loopback, and sees neither
    another network nor a file that it was not shown.
    """
    if sys.platform != "linux" or not shutil.which("bwrap"):
        return "plain"
    with (
        tempfile.TemporaryDirectory(prefix="probe-") as folder,
        tempfile.NamedTemporaryFile() as canary,
    ):
        command = [sys.executable, "-c", PROBE, canary.name]
        outcome = run(command, Path(folder), 30, layer="bwrap")
        holds = outcome.rc == 0 and (Path(folder) / "inside").exists()
    return "bwrap" if holds else "plain"


def _environment(folder: Path, extra: dict | None) -> dict[str, str]:
    """The allow-list; caches of a run stay in its folder."""
    home, temporary = folder / ".sandbox" / "home", folder / ".sandbox" / "tmp"
    for place in (home.parent, home, temporary):
        if place.is_symlink() or place.exists() and not place.is_dir():
            place.unlink()  # left by an earlier run, to be followed
        place.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    own = {
        "HOME": str(home),
        "USER": "group",  # asked for where there is no /etc/passwd
        "TMPDIR": str(temporary),
        "MPLBACKEND": "agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUSERBASE": site.getuserbase(),
    }
    given = {name: str(value) for name, value in (extra or {}).items()}
    return {"PATH": os.defpath, "LANG": "C.UTF-8"} | kept | own | given


# --------------------------------------------------------------------------------------
# bubblewrap
# --------------------------------------------------------------------------------------


def entrance(folder: Path, readable=()) -> list[str]:
    """The beginning of a command line that closes what follows it in."""
    paths, links = _visible(readable)
    line = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    line += ["--cap-drop", "ALL", "--tmpfs", "/tmp"]
    for path in paths:
        line += ["--ro-bind", path, path]
    for link, path in links.items():
        line += ["--symlink", path, link]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for path in _devices(*DEVICES, *GPUS):
        line += ["--dev-bind-try", path, path]
    line += ["--bind", str(folder), str(folder)]
    line += ["--remount-ro", "/", "--remount-ro", "/proc"]
    return [*line, "--chdir", str(folder), "--"]


def _devices(*patterns: str) -> list[str]:
    return sorted(str(path) for name in patterns for path in Path("/dev").glob(name))


def _visible(readable) -> tuple[list[str], dict[str, str]]:
    """Real paths to show, and the links by which they are known."""
    asked = [*SYSTEM, sys.prefix, sys.base_prefix, *map(str, readable)]
    asked += OF_GPUS if _devices(*GPUS) else ()
    # of the core of an overlay
    asked += [path for path in sys.path if os.path.basename(path) == "site-packages"]
    if site.ENABLE_USER_SITE:
        asked.append(site.getusersitepackages())
    hop = sys.executable  # a virtual environment reaches its Python through links
    while os.path.islink(hop):
        hop = os.path.normpath(os.path.join(os.path.dirname(hop), os.readlink(hop)))
        asked.append(os.path.dirname(os.path.dirname(hop)))
    asked = [os.path.abspath(path) for path in asked if os.path.exists(path)]
    real = {path: os.path.realpath(path) for path in asked}
    paths = []
    for path in sorted(set(real.values()) - {"/"}):
        if not any(_below(path, parent) for parent in paths):
            paths.append(path)
    links = {link: path for link, path in real.items() if link != path}
    return paths, {
        link: path
        for link, path in links.items()
        if not any(_below(link, other) for other in (*paths, *links) if other != link)
    }


def _below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


# --------------------------------------------------------------------------------------
# The watch from outside
# --------------------------------------------------------------------------------------


def _attend(process, folder: Path, limit: float, layer: str) -> Outcome:
    """Wait, keep the end of the output; stop at a limit."""
    tail, began, stopped = bytearray(), time.monotonic(), ""
    reader = threading.Thread(target=_drain, args=(process.stdout, tail), daemon=True)
    reader.start()
    watch = Watch(process.pid, folder)
    try:
        while process.poll() is None and not stopped:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            if process.poll() == 0:
                break
            late = process.poll() is None and time.monotonic() - began > limit
            stopped = "time" if late else watch.exceeded()
    finally:  # also when somebody interrupts the check
        _end(process, layer)
    reader.join(10)
    text = bytes(tail).decode(errors="replace")
    seconds = round(time.monotonic() - began, 3)
    return Outcome(process.returncode, text, stopped, seconds, layer)


class Watch:
    """What the processes of a run use together, and what they leave of the machine."""

    def __init__(self, pid: int, folder: Path):
        self.pid, self.folder = pid, folder
        self.disk, self.memory = self._free()

    def _free(self) -> tuple[int, int]:
        available = psutil.virtual_memory().available
        return shutil.disk_usage(self.folder).free, available

    def exceeded(self) -> str:
        """The key of WHY of the limit that they are beyond; "" within all."""
        disk, memory = self._free()
        if disk < min(GIB // 2, self.disk // 2):
            return "disk"
        # others write to the disk, too
        if self.disk - disk > MAX_WRITTEN and _size(self.folder) > MAX_WRITTEN:
            return "written"
        with suppress(psutil.Error):
            processes = psutil.Process(self.pid).children(recursive=True)
            tasks, held = map(sum, zip((0, 0), *map(_use, processes), strict=True))
            if tasks > MAX_TASKS:
                return "tasks"
            # what lies in /dev/shm is nobody's
            if held > MAX_MEMORY or memory < min(GIB, self.memory // 4):
                return "memory"
        return ""


def _use(process: psutil.Process) -> tuple[int, int]:
    """Threads of a process, and bytes that it holds for itself."""
    try:
        about = process.memory_info()
        return process.num_threads(), about.rss - getattr(about, "shared", 0)
    except psutil.Error:  # gone in between
        return 0, 0


def _size(folder: Path) -> int:
    """Bytes on the disk below a folder."""
    size, waiting = 0, [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return size


def _end(process, layer: str) -> None:
    if process.poll() is None:
        # plain: the watch cleans up
        process.send_signal(signal.SIGTERM if layer == "plain" else signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _drain(pipe, tail: bytearray) -> None:
    while piece := os.read(pipe.fileno(), 65536):
        tail += piece
        del tail[:-TAIL]
    pipe.close()


# --------------------------------------------------------------------------------------
# This file as a program: it limits itself, then becomes bubblewrap, or the watch
# --------------------------------------------------------------------------------------

PDEATHSIG, SECCOMP, CHILD_SUBREAPER, NO_NEW_PRIVS = 1, 22, 36, 38


# The kernel's number of a machine, the calls that make sockets, and those refused:
# add_key, request_key, keyctl, io_uring_setup.
CALLS = {
    "x86_64": (0xC000003E, (41, 53), (248, 249, 250, 425)),
    "aarch64": (0xC00000B7, (198, 199), (217, 218, 219, 425)),
}
FAMILIES = (1, 2, 10, 16)  # UNIX, IPv4, IPv6, netlink: what a network namespace closes
LOAD, EQUAL, ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOWED, REFUSED = 0x7FFF0000, 0x00050000
NO_SUCH_CALL, NO_SUCH_FAMILY = 38, 97


def prctl(option: int, value: int, more: int = 0) -> None:
    if sys.platform == "linux":
        numbers = [ctypes.c_ulong(number) for number in (value, more, 0, 0)]
        ctypes.CDLL(None).prctl(option, *numbers)


def _filter() -> bytes:
    """A program for the kernel, that looks at each call; b"" for a machine that is not
    known here.
    """
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return b""
    machine, sockets, refused = CALLS[platform.machine()]
    program = [
        (LOAD, 4),
        (EQUAL, machine, 0, "no"),
        (LOAD, 0),
        (ABOVE, 0x40000000, "no", 0),  # the calls of another interface
        *((EQUAL, call, "no", 0) for call in refused),
        *((EQUAL, call, "socket", 0) for call in sockets),
        (RETURN, ALLOWED),
        (LOAD, 16),
        *((EQUAL, family, "yes", 0) for family in FAMILIES),
        (RETURN, REFUSED | NO_SUCH_FAMILY),
        (RETURN, ALLOWED),
        (RETURN, REFUSED | NO_SUCH_CALL),
    ]
    end = len(program) - 1
    places = {"no": end, "yes": end - 1, "socket": program.index((LOAD, 16))}
    lines = []
    for at, (code, value, *jumps) in enumerate(program):
        jumps = [places[jump] - at - 1 if jump else 0 for jump in jumps or (0, 0)]
        lines.append(struct.pack("=HBBI", code, *jumps, value))
    return b"".join(lines)


def _filter_here() -> None:
    """The kernel refuses this process, and all that it starts, what the filter says."""
    if lines := _filter():
        code = ctypes.create_string_buffer(lines)
        about = struct.pack("@HP", len(lines) // 8, ctypes.addressof(code))
        program = ctypes.create_string_buffer(about)
        prctl(SECCOMP, 2, ctypes.addressof(program))


def _filter_of_bubblewrap() -> list[str]:
    """The option by which bubblewrap hands it to the kernel at its end."""
    if not (lines := _filter()):
        return []
    file = os.memfd_create("filter", 0)
    os.write(file, lines)
    os.lseek(file, 0, os.SEEK_SET)
    return ["--seccomp", str(file)]


def _leave_keyring() -> None:
    """A session keyring of its own: what the grader has unlocked stays there."""
    if sys.platform == "linux" and platform.machine() in CALLS:
        keyctl = CALLS[platform.machine()][2][2]
        ctypes.CDLL(None).syscall(keyctl, 1, None)


def _tasks_of_this_user() -> int:
    """Processes and threads: the limit counts them all, and holds for all but root."""
    found = psutil.process_iter(["uids", "num_threads"])
    return sum(
        each.info["num_threads"] or 0
        for each in found
        if each.info["uids"] and each.info["uids"].real == os.getuid()
    )


def _limit() -> None:
    """Limits of this process and of all that it starts."""
    import resource

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 4 * GIB,
        resource.RLIMIT_NOFILE: 4096,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_NPROC: _tasks_of_this_user() + MAX_TASKS,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.nice(5)
    # no such file, or not ours to write: the limit above still holds
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _watch(command: list[str]) -> int:
    """Run the command; kill whatever it leaves behind, in whatever session, when it
    ends or when we are told to.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prctl(CHILD_SUBREAPER, 1)  # orphans become ours
    prctl(NO_NEW_PRIVS, 1)
    _filter_here()
    child = subprocess.Popen(command, start_new_session=True)
    try:
        while (ended := os.wait())[0] != child.pid:
            pass
        return os.waitstatus_to_exitcode(ended[1])
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        _kill_children()


def _kill_children() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and children.exists():
        pids = children.read_text().split()
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(int(pid), signal.SIGKILL)
                os.waitpid(int(pid), 0)


def _begin(layer: str, *command: str) -> int:
    _limit()
    _leave_keyring()
    # should the checker be killed, then so are we
    prctl(PDEATHSIG, signal.SIGTERM if layer == "plain" else signal.SIGKILL)
    if layer == "bwrap":  # its own first process takes all others with it
        program, *rest = command
        os.execvp(program, [program, *_filter_of_bubblewrap(), *rest])
    return _watch(list(command))


if __name__ == "__main__":
    status = _begin(*sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
