"""A forked operation that stops before each of its looks at, and changes of, the disk.

An audit hook sees the calls, so no code of the product changes for it. The parent decides when the
operation goes on, and may kill it where it stands. Only the calls below `root` count.
"""

import fcntl
import functools
import json
import os
import select
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from embedcache import locks
from embedcache.errors import EmbedcacheError

CHANGES: Final = frozenset(
    ["os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"]
)
WRITES: Final = frozenset(["create", "request put", "request create", "request delete"])
LOOKS: Final = frozenset(["os.scandir", "os.listdir"])
HANGS_SECONDS = 60.0

_HEAD = struct.Struct("<I")
_GO = struct.Struct("<q")
TO_THE_END: Final = 1 << 40
_REAL_STAT = os.stat


@dataclass(frozen=True, slots=True)
class Event:
    """A call before which an operation stopped."""

    name: str
    path: str

    @property
    def changes(self) -> bool:
        return self.name in CHANGES or self.name in WRITES

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass(frozen=True, slots=True)
class End:
    """How an operation ended. status: done, refused (an EmbedcacheError), crashed or killed."""

    status: str
    text: str = ""
    value: Any = None


class _Child:
    """The state of this process as an operation; `pid` is 0 elsewhere."""

    def __init__(self) -> None:
        self.pid = 0
        self.root = ""
        self.fine = False
        self.subject = ""
        self.send = self.go = -1
        self.n_events = self.left = 0
        self.lock = threading.RLock()


_child = _Child()


def install() -> None:
    """See every call of this process and its children; nothing stops until an operation runs."""
    sys.addaudithook(_hook)
    os.stat = _stat
    fcntl.lockf, fcntl.flock = _asking(fcntl.lockf), _asking(fcntl.flock)
    locks.pause = _blocked


def stop(name: str, path: str) -> None:
    """Stop here, if this process is an operation, until the parent says go."""
    if _child.pid != os.getpid():
        return
    with _child.lock:
        subject = _subject(name, path)
        if not _child.fine and subject == _child.subject:
            return
        _child.subject = subject
        if _child.left == 0:
            _wait({"event": name, "path": path})
        _child.left -= 1
        _child.n_events += 1


def _wait(message: dict[str, Any]) -> None:
    """Tell the parent where this operation stands; it answers how many calls may follow."""
    _write(_child.send, message | {"before": _child.n_events})
    n = _GO.unpack(os.read(_child.go, _GO.size))[0]
    _child.left = n or _child.left


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _child.pid or _child.pid != os.getpid():
        return
    if event in CHANGES or event in LOOKS:
        path = _below(args[0])
        if path is not None:
            stop(event, path)
    elif event == "open":
        flags = args[2] or 0
        path = _below(args[0])
        if path is not None:
            stop("create" if flags & os.O_CREAT else "open", path)


def _subject(name: str, path: str) -> str:
    """What a call is about; the second of two in a row about one thing is for fine schedules only.

    A segment is read, written and deleted file by file: that is one thing, but for what makes it
    appear or vanish: its manifest, its folder's own name, its lease.
    """
    head, inside, rest = path.partition("/segments/")
    segment, below, file = rest.partition("/")
    if (
        inside
        and below
        and not (
            name in CHANGES and file.startswith(("manifest.json", ".manifest.json", "writing"))
        )
    ):
        return f"{head}/{segment}"
    if not path.startswith("/") and "/" not in path:  # relative to an open folder
        return _child.subject
    return f"{name} {path}"


def _below(path: Any) -> str | None:
    """A path relative to the root; None for one outside of it. Relative ones are inside."""
    if isinstance(path, int):
        return "." if _child.root else None
    text = os.fsdecode(path)
    if not _child.root:
        return None
    if not text.startswith("/"):
        return text
    return text[len(_child.root) :] if text.startswith(_child.root) else None


def _stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
    # Asking whether something is a link is a guard against strangers, and no protocol rests on it.
    looks = _child.fine or options.get("follow_symlinks", True)
    if looks and _child.pid == os.getpid() and not isinstance(path, int):
        where = _below(path)
        if where is not None:
            stop("stat", where)
    return _REAL_STAT(path, *args, **options)


def _blocked() -> None:
    """Wait for a lock by asking the parent to let the process that holds it go on."""
    if _child.pid != os.getpid():
        time.sleep(locks.LOOK_SECONDS)
        return
    with _child.lock:
        _wait({"event": "blocked", "path": ""})


def _asking(lock: Callable[..., None]) -> Callable[..., None]:
    """A lock that waits for another process by asking the parent to let that go on."""

    @functools.wraps(lock)
    def ask(fd: int, command: int, *args: int) -> None:
        if _child.pid != os.getpid() or command & (fcntl.LOCK_NB | fcntl.LOCK_UN):
            return lock(fd, command, *args)
        while True:
            try:
                return lock(fd, command | fcntl.LOCK_NB, *args)
            except OSError:
                with _child.lock:
                    _wait({"event": "blocked", "path": ""})

    return ask


@dataclass(slots=True)
class Running:
    """An operation in a process of its own.

    next: the call that it is about to make. n_events: those that it has made.
    waits: it is blocked by a lock that another operation holds.
    """

    name: str
    pid: int
    answers: int
    go: int
    n_events: int = 0
    next: Event | None = None
    end: End | None = None
    waits: bool = False

    def run(self, n_events: int = TO_THE_END) -> None:
        """Let it make `n_events` calls, or all that come until it ends or waits for a lock."""
        if n_events == 0 or self.end is not None:
            return
        # One that waited goes on with the calls that it was allowed before.
        os.write(self.go, _GO.pack(0 if self.waits else n_events))
        self._listen()

    def has_ended(self) -> bool:
        """Whether it has ended, without waiting; one that stands before a lock goes on."""
        while self.end is None and select.select([self.answers], [], [], 0)[0]:
            self._listen()
            if self.end is None:
                os.write(self.go, _GO.pack(TO_THE_END))
        return self.end is not None

    def kill(self) -> None:
        """SIGKILL where it stands."""
        if self.end is None:
            os.kill(self.pid, signal.SIGKILL)
            self._close(End("killed"))

    def _listen(self) -> None:
        ready, _, _ = select.select([self.answers], [], [], HANGS_SECONDS)
        if not ready:
            at = self.next
            self.kill()
            self.end = End("crashed", f"hangs after {at}")
            return
        message = _read(self.answers)
        if message is None:
            self._close(End("crashed", "its process died"))
        elif "event" in message:
            self.next = Event(message["event"], message["path"])
            self.n_events = message["before"]
            self.waits = self.next.name == "blocked"
        else:
            self.n_events = message["events"]
            self._close(End(message["status"], message["text"], message["value"]))

    def _close(self, end: End) -> None:
        self.end, self.next, self.waits = end, None, False
        os.waitpid(self.pid, 0)
        os.close(self.answers)
        os.close(self.go)


def begin(
    name: str,
    function: Callable[[], Any],
    *,
    root: str,
    before: Callable[[], None] | None = None,
    fine: bool = False,
) -> Running:
    """Fork an operation; it stands before its first call below `root`.

    root: "" for one that runs freely, stops nowhere, and is not waited for.
    before: run in the child first, such as what shifts its clock.
    fine: count every look, also the second and third in a row at one segment.
    """
    answers, send = os.pipe()
    hear, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        os.close(go)
        _operate(function, root=root, before=before, fine=fine, send=send, go=hear)
    os.close(send)
    os.close(hear)
    running = Running(name, pid, answers, go)
    if root:
        running._listen()
    return running


def finish(name: str, function: Callable[[], Any]) -> End:
    """Run a function in a child, to its end, without stopping it."""
    running = begin(name, function, root="")
    running._listen()
    while running.end is None:
        running.run()
    return running.end


def _operate(
    function: Callable[[], Any],
    *,
    root: str,
    before: Callable[[], None] | None,
    fine: bool,
    send: int,
    go: int,
) -> None:
    """The child: run the function, report its end, and be gone without any cleaning up."""
    status, text, value = "done", "", None
    try:
        if before is not None:
            before()
        _child.left = 0
        _child.root, _child.fine, _child.send, _child.go = root, fine, send, go
        _child.lock = threading.RLock()
        _child.pid = os.getpid()
        value = function()
        text = str(value)
    except EmbedcacheError as error:
        status, text = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(where))
        status, text = "crashed", f"{type(error).__name__}: {error} ({places})"
    try:
        _child.pid = 0
        value = value if isinstance(value, dict | list) else None
        answer = {"status": status, "text": text[:2000], "value": value}
        _write(send, answer | {"events": _child.n_events})
    finally:
        os._exit(0)


def _write(fd: int, message: dict[str, Any]) -> None:
    raw = json.dumps(message).encode()
    data = memoryview(_HEAD.pack(len(raw)) + raw)
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int) -> dict[str, Any] | None:
    head = _read_exactly(fd, _HEAD.size)
    if head is None:
        return None
    raw = _read_exactly(fd, _HEAD.unpack(head)[0])
    return None if raw is None else dict(json.loads(raw))


def _read_exactly(fd: int, n: int) -> bytes | None:
    raw = b""
    while len(raw) < n:
        part = os.read(fd, n - len(raw))
        if not part:
            return None
        raw += part
    return raw
