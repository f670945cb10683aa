"""Wrong clocks and other hosts: what a process believes of the time, of itself and of locks."""

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from embedcache.store import journal

_REAL = {name: getattr(time, name) for name in ("time", "time_ns")}


@dataclass(frozen=True, slots=True)
class Host:
    """Where an operation runs: its clock, and whether it is another machine without our locks."""

    clock: timedelta = timedelta(0)
    far: bool = False

    def __str__(self) -> str:
        days = self.clock / timedelta(days=1)
        clock = f" with its clock {days:+.0f} day" if days else ""
        return f"{'another' if self.far else 'this'} host{clock}"

    def settle(self) -> None:
        """Make this process, which must be a fork, one of that host."""
        shift(self.clock)
        if self.far:
            journal._whoami = lambda: {
                "host": "far",
                "boot": "far",
                "pid": 1,
                "started": "1",
            }
            fcntl.lockf = lambda *args: None


HERE: Final = Host()


class _Shifted(datetime):
    """A datetime whose `now` is another."""

    by = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "datetime":  # type: ignore[override]
        return datetime.now(tz) + cls.by


def shift(by: timedelta) -> None:
    """Shift what this process takes for the time; the times of files stay the kernel's."""
    _Shifted.by = by
    for name, module in list(sys.modules.items()):
        if name.startswith("embedcache") and getattr(module, "datetime", None) in (
            datetime,
            _Shifted,
        ):
            setattr(module, "datetime", _Shifted if by else datetime)  # noqa: B010
    patched: dict[str, Any] = {
        "time": lambda: _REAL["time"]() + by.total_seconds(),
        "time_ns": lambda: _REAL["time_ns"]() + int(by.total_seconds()) * 10**9,
    }
    for name, real in _REAL.items():
        setattr(time, name, patched[name] if by else real)


@contextlib.contextmanager
def shifted(by: timedelta) -> Iterator[None]:
    shift(by)
    try:
        yield
    finally:
        shift(timedelta(0))
