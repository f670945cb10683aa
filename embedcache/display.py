"""Progress on stderr (a bar on a terminal, else a line every ten seconds), and a clean stop."""

import contextlib
import itertools
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Protocol, TextIO

from embedcache.extraction.clock import RunProgress, duration
from embedcache.spec import Json
from embedcache.wording import counted, printable

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 10.0
QUIET_SECONDS = 2.0

log = logging.getLogger(__name__)


class Refreshed(Protocol):
    """What is shown again and again: text for people, a document for machines."""

    def document(self) -> dict[str, Json]: ...


@contextmanager
def progress_on(stream: TextIO | None = None) -> Iterator[Callable[[RunProgress], None]]:
    """Give a function that shows the progress of a run, from its third second on.

    stream: stderr unless given.
    """
    stream = stream or sys.stderr
    if stream.isatty() and not _is_quiet():
        with _bar(stream) as show:
            yield show
    else:
        say = _every_ten_seconds(stream)
        yield lambda p: say(lambda: text_of(p))


def transfer_on(stream: TextIO | None = None) -> Callable[[int, int], None]:
    """Give a function that prints (bytes moved, bytes in all), at most every ten seconds."""
    say = _every_ten_seconds(stream)
    return lambda done, n: say(lambda: f"{done / 1e6:,.0f} of {n / 1e6:,.0f} MB")


def counts_on(what: str, stream: TextIO | None = None) -> Callable[..., None]:
    """Give a function that prints (things done) or (done, in all), at most every ten seconds.

    what: the things, in the plural, first: "photos read".
    """
    say = _every_ten_seconds(stream)
    things, _, rest = what.partition(" ")
    one = " ".join([things.removesuffix("s"), *([rest] if rest else [])])

    def text(counts: tuple[int, ...]) -> str:
        return " of ".join([*(f"{k:,}" for k in counts[:-1]), counted(counts[-1], one, what)])

    return lambda done, *n: say(lambda: text((done, *n)))


def stop_on_signal() -> AbstractContextManager[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one ends the process."""
    saying = partial(log.info, "stopping: committing what is done ...")
    return _heard(signal.SIGINT, signal.SIGTERM, then=saying)


@contextmanager
def _heard(*numbers: signal.Signals, then: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Whether one of some signals came while this lasts; the first does `then`, the next what it
    did before.

    Outside the main thread, where Python handles no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False

    def hear(number: int, frame: object) -> None:
        nonlocal came
        came = True
        set_back()
        then()

    def set_back() -> None:
        for one, old in before.items():
            signal.signal(one, old)

    before = {one: signal.signal(one, hear) for one in numbers}
    try:
        yield lambda: came
    finally:
        set_back()


def _interrupt() -> None:
    raise KeyboardInterrupt


def shown_again(results: Iterable[Refreshed], *, as_json: bool = False) -> None:
    """Print results until there are no more, or Ctrl-C: on a terminal each in place of the last
    one, elsewhere one after another; as_json: one document on a line for each.

    Python drops a KeyboardInterrupt that comes amid a destructor, so it is asked for as well.
    """
    with (
        contextlib.suppress(KeyboardInterrupt),
        _heard(signal.SIGINT, then=_interrupt) as interrupted,
    ):
        results = itertools.takewhile(lambda _: not interrupted(), results)
        if as_json or not sys.stdout.isatty():
            for result in results:
                text = json.dumps(result.document()) if as_json else printable(str(result))
                print(text, flush=True)
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(), auto_refresh=False) as live:
            for result in results:
                live.update(Text(printable(str(result))), refresh=True)


def text_of(p: RunProgress) -> str:
    """`1,200 of 9,000 photos  14.2/s  9 min 10 s left  3 failed`."""
    rate = p.done / p.seconds if p.seconds else 0.0
    doing = f"{p.doing} " if p.doing else ""
    parts = [f"{doing}{p.done:,} of {counted(p.n, 'photo')}", f"{rate:.1f}/s"]
    if rate:
        parts.append(f"{duration((p.n - p.done) / rate)} left")
    if p.failed:
        parts.append(f"{p.failed:,} failed")
    return "  ".join(parts)


def _every_ten_seconds(stream: TextIO | None) -> Callable[[Callable[[], str]], None]:
    """Give a function that prints a line at most every ten seconds, the first after two seconds;
    the text is made only for a line that is printed."""
    out = stream or sys.stderr
    last = time.monotonic() - LINE_SECONDS + QUIET_SECONDS

    def say(text: Callable[[], str]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS and not _is_quiet():
            last = now
            print(text(), file=out, flush=True)

    return say


def _is_quiet() -> bool:
    """Whether the command line was asked for errors and warnings only."""
    return logging.getLogger("embedcache").level > logging.INFO


@contextmanager
def _bar(stream: TextIO) -> Iterator[Callable[[RunProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}"))
    console = Console(file=stream)
    with _notes_above(console), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(p: RunProgress) -> None:
            bar.update(
                task,
                completed=p.done,
                total=p.n,
                description=text_of(p),
                visible=p.seconds >= QUIET_SECONDS,
            )

        yield show


@contextmanager
def _notes_above(console: "Console") -> Iterator[None]:
    """Write log lines above a bar: they would stand behind it, on a line that then stays."""
    from rich.text import Text

    class Above(StringIO):
        def write(self, text: str) -> int:
            console.print(Text(text), end="", soft_wrap=True)
            return len(text)

    handlers = [
        handler
        for handler in logging.getLogger("embedcache").handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is console.file
    ]
    for handler in handlers:
        handler.setStream(Above())
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(console.file)
