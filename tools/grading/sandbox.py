"""Run a command that is not trusted: without network, with the files it needs and no
others, and with no survivors.

Three layers, the best one that this machine allows:

bwrap    bubblewrap, where it is installed.
unshare  The same with namespaces of our own, where an ordinary account may make them:
         a root folder that holds the system, Python and what was named, read-only; the
         work folder; a network of the loopback alone; no other processes.
plain    Neither: a clean environment, limits and a watch over the processes. Network
         and files are NOT closed.

In all of them the environment is an allow-list, HOME and TMPDIR lie in the work folder,
core files are off, a file may have 4 GiB, a process as much private memory as the
machine has (a limit on addresses would stop torch, which reserves far more than it
uses), and when memory runs out the kernel takes these processes first. The disk is
watched as a whole. GPUs stay reachable, and with them their drivers. None of this is
proof against somebody who attacks the kernel."""

import ctypes
import json
import os
import re
import shutil
import signal
import site
import socket
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

GIB = 2**30
SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/sys",
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/group",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/OpenCL",
    "/etc/passwd",
    "/etc/ssl",
    "/etc/vulkan",
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "nvidia*", "dri", "kfd")
PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "COURSE_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "ORT_DISABLE_TELEMETRY",
)
LAYERS = {
    "bwrap": (
        "bubblewrap: no network, only the files it needs (read-only), processes of"
        " its own"
    ),
    "unshare": (
        "namespaces: no network, only the files it needs (read-only), processes of"
        " its own"
    ),
    "plain": (
        "NOT CLOSED: this machine allows neither bubblewrap nor namespaces. Clean"
        " environment, limits and a watch over processes only: the code could reach the"
        " network and every file of this account. Check submissions that you do not"
        " trust on another machine"
    ),
}
TAIL = 32768  # bytes of output that are kept


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes
    ----------
    rc : int
        Its exit status, negative for the signal that ended it.
    tail : str
        The last of what it printed.
    stopped : {"", "time", "disk"}
        Why it was stopped, if it was.
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

    @property
    def containment(self) -> str:
        return LAYERS[self.layer]


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
    paths = _visible(readable)
    with tempfile.TemporaryDirectory(prefix="stage-") as stage:
        plan = {
            "layer": layer,
            "folder": str(folder),
            "stage": stage,
            "command": list(command),
        } | paths
        itself = [sys.executable, "-P", str(Path(__file__).resolve()), json.dumps(plan)]
        process = subprocess.Popen(
            itself,
            env=_environment(folder, environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return _attend(process, folder, limit, layer)


@cache
def best_layer() -> str:
    """The first of LAYERS in which a small program runs, finds its own loopback and
    cannot write elsewhere.
    """
    if sys.platform == "linux":
        for layer in ("bwrap", "unshare"):
            if shutil.which(layer) and _holds(layer):
                return layer
    return "plain"


PROBE = """
import os, socket, sys
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), 5)
open("inside", "w").close()
networks = [name for _, name in socket.if_nameindex()]
sys.exit(3 if os.path.exists(sys.argv[1]) or networks != ["lo"] else 0)
"""


def _holds(layer: str) -> bool:
    with (
        tempfile.TemporaryDirectory(prefix="probe-") as folder,
        tempfile.NamedTemporaryFile() as canary,
    ):
        outcome = run(
            [sys.executable, "-c", PROBE, canary.name], Path(folder), 30, layer=layer
        )
        return outcome.rc == 0 and (Path(folder) / "inside").exists()


def _environment(folder: Path, extra: dict | None) -> dict[str, str]:
    """The allow-list; caches of a run stay in its folder."""
    home, temporary = folder / ".sandbox" / "home", folder / ".sandbox" / "tmp"
    for place in (home.parent, home, temporary):
        if place.is_symlink():  # left by an earlier run, to be followed
            place.unlink()
        place.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    own = {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "MPLBACKEND": "agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUSERBASE": site.getuserbase(),
    }
    return (
        {"PATH": os.defpath, "LANG": "C.UTF-8"}
        | kept
        | own
        | {k: str(v) for k, v in (extra or {}).items()}
    )


def _visible(readable) -> dict:
    """Real paths to show, and the links by which they are known."""
    asked = [*SYSTEM, sys.prefix, sys.base_prefix, *map(str, readable)]
    # of the core of an overlay
    asked += [path for path in sys.path if os.path.basename(path) == "site-packages"]
    if site.ENABLE_USER_SITE:
        asked.append(site.getusersitepackages())
    hop = sys.executable  # a virtual environment reaches its Python through links
    while os.path.islink(hop):
        hop = os.path.normpath(os.path.join(os.path.dirname(hop), os.readlink(hop)))
        asked.append(os.path.dirname(os.path.dirname(hop)))
    asked = [os.path.abspath(path) for path in asked if os.path.exists(path)]
    links = {
        path: os.path.realpath(path) for path in asked if os.path.realpath(path) != path
    }
    paths = []
    for path in sorted({os.path.realpath(path) for path in asked} - {"/"}):
        if not any(_below(path, parent) for parent in paths):
            paths.append(path)
    links = {
        link: path
        for link, path in links.items()
        if not any(
            _below(link, parent)
            for parent in [*paths, *(other for other in links if other != link)]
        )
    }
    return {"read": paths, "links": links}


def _below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def _entrance(plan: dict) -> list[str]:
    """The command line that makes the layer and starts this file again inside it."""
    inner = [
        sys.executable,
        "-P",
        str(Path(__file__).resolve()),
        json.dumps(plan | {"inside": True}),
    ]
    if plan["layer"] == "unshare":
        return [
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            *inner,
        ]
    line = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/tmp",
    ]
    for path in [*plan["read"], str(Path(__file__).resolve())]:
        line += ["--ro-bind", path, path]
    for link, path in plan["links"].items():
        line += ["--symlink", path, link]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for path in _devices():
        line += ["--dev-bind-try", path, path]
    line += [
        "--bind",
        plan["folder"],
        plan["folder"],
        "--remount-ro",
        "/",
        "--remount-ro",
        "/proc",
    ]
    return [*line, "--chdir", plan["folder"], *inner]


def _devices() -> list[str]:
    return sorted(
        str(path) for pattern in DEVICES for path in Path("/dev").glob(pattern)
    )


def _attend(process, folder: Path, limit: float, layer: str) -> Outcome:
    """Wait, keep the end of the output, stop at the limit or before the
    disk is full.
    """
    tail, began, stopped = bytearray(), time.monotonic(), ""
    reader = threading.Thread(target=_drain, args=(process.stdout, tail), daemon=True)
    reader.start()
    reserve = min(GIB // 2, shutil.disk_usage(folder).free // 2)
    try:
        while process.poll() is None and not stopped:
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                stopped = "time" if time.monotonic() - began > limit else ""
                stopped = stopped or (
                    "disk" if shutil.disk_usage(folder).free < reserve else ""
                )
    finally:  # also when somebody interrupts the check
        _end(process, layer)
    reader.join(10)
    text = bytes(tail).decode(errors="replace")
    return Outcome(
        process.returncode, text, stopped, round(time.monotonic() - began, 3), layer
    )


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
# This file as a program: it becomes the layer, and runs again as its first process
# --------------------------------------------------------------------------------------

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME, NODIRATIME, BIND, REC, RELATIME = (
    1,
    2,
    4,
    8,
    32,
    1024,
    2048,
    4096,
    16384,
    1 << 21,
)
OPTIONS = {
    "nosuid": NOSUID,
    "nodev": NODEV,
    "noexec": NOEXEC,
    "noatime": NOATIME,
    "nodiratime": NODIRATIME,
    "relatime": RELATIME,
}
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
DETACH = 2
PDEATHSIG, CAPBSET_DROP, CHILD_SUBREAPER, NO_NEW_PRIVS = 1, 24, 36, 38


def _call(name: str, *arguments) -> None:
    """A call of the C library; its error as Python raises it."""
    library = ctypes.CDLL(None, use_errno=True)
    encoded = [
        (
            os.fsencode(a)
            if isinstance(a, str)
            else ctypes.c_ulong(a)
            if isinstance(a, int)
            else a
        )
        for a in arguments
    ]
    if getattr(library, name)(*encoded) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{name}{arguments}")


def _close(plan: dict) -> None:
    """Give this process a network and a root folder of its own, and no rights to change
    them.
    """
    _loopback_up()
    stage, folder = plan["stage"], plan["folder"]
    _call("mount", "tmpfs", stage, "tmpfs", NOSUID | NODEV, "mode=755")
    for name in ("tmp", "dev", "dev/shm"):
        os.makedirs(f"{stage}/{name}", exist_ok=True)
    for name in ("tmp", "dev/shm"):
        _call("mount", "tmpfs", f"{stage}/{name}", "tmpfs", NOSUID | NODEV, "mode=1777")
    for path in [*plan["read"], *_devices()]:
        _bind(path, stage + path)
    for link, path in plan["links"].items():
        os.makedirs(os.path.dirname(stage + link), exist_ok=True)
        os.symlink(path, stage + link)
    for name in ("fd", "fd/0", "fd/1", "fd/2"):
        link = {"fd": "fd", "fd/0": "stdin", "fd/1": "stdout", "fd/2": "stderr"}[name]
        os.symlink(f"/proc/self/{name}", f"{stage}/dev/{link}")
    _bind(folder, stage + folder)
    os.mkdir(f"{stage}/proc")
    try:
        _call("mount", "proc", f"{stage}/proc", "proc", NOSUID | NODEV | NOEXEC, None)
    except OSError:
        # a container that masks parts of /proc allows no new one; ours is seen,
        # read-only
        _bind("/proc", f"{stage}/proc")
    _read_only(stage, stage + folder)
    os.chdir(stage)
    _call("syscall", PIVOT_ROOT[os.uname().machine], ".", ".")
    _call("umount2", ".", DETACH)
    os.chdir(folder)
    for capability in range(64):
        try:
            _call("prctl", CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:  # the kernel knows no more of them
            break


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        import fcntl

        # SIOCGIFFLAGS
        request = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", request)[1]
        # SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))


def _bind(path: str, target: str) -> None:
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    _call("mount", path, target, None, BIND | REC, None)


def _read_only(stage: str, folder: str) -> None:
    """Make every mount of the new root read-only, but for the work folder, fresh memory
    and devices.
    """
    fresh = [f"{stage}/tmp", f"{stage}/dev/shm", *(stage + path for path in _devices())]
    for line in (
        Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    ):
        place, options = line.split()[4:6]
        place = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), place)
        if _below(place, stage) and not _below(place, folder) and place not in fresh:
            flags = sum(
                flag for name, flag in OPTIONS.items() if name in options.split(",")
            )
            _call("mount", None, place, None, BIND | REMOUNT | RDONLY | flags, None)


def _limit() -> None:
    """Limits of this process and of all that it starts."""
    import resource

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 4 * GIB,
        "RLIMIT_NOFILE": 4096,
        "RLIMIT_DATA": memory,
    }
    for name, value in wanted.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    os.nice(5)
    # no such file, or not ours to write: the limit above still holds
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _watch(command: list[str]) -> int:
    """Run the command; kill whatever it leaves behind, in whatever session, when it
    ends or when we are told to.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.platform == "linux":
        _call("prctl", CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become ours
        _call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
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
    while (
        time.monotonic() < deadline
        and children.exists()
        and (pids := children.read_text().split())
    ):
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(int(pid), signal.SIGKILL)
                os.waitpid(int(pid), 0)


def _begin(plan: dict) -> int:
    """First outside: set the limits, then become the layer; then inside it: close what
    it left open, run.
    """
    if not plan.get("inside"):
        _limit()
        if sys.platform == "linux":  # should the checker be killed, then so are we
            _call(
                "prctl",
                PDEATHSIG,
                signal.SIGTERM if plan["layer"] == "plain" else signal.SIGKILL,
                0,
                0,
                0,
            )
        if plan["layer"] != "plain":
            entrance = _entrance(plan)
            os.execvp(entrance[0], entrance)
    elif plan["layer"] == "unshare":
        _close(plan)
    return _watch(plan["command"])


if __name__ == "__main__":
    status = _begin(json.loads(sys.argv[1]))
    sys.exit(status if status >= 0 else 128 - status)
