"""What stays on a terminal after progress, notes, errors and Ctrl-C: whole lines only."""

import contextlib
import io
import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from embedcache import display
from embedcache.extraction.clock import RunProgress

MakePhotos = Callable[..., Path]
WIDTH = 80


def screen(written: str) -> list[str]:
    """The lines on a terminal that was sent this text, without colours."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", written):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif found := re.fullmatch(r"\x1b\[(\d+)A", part):
            row -= int(found[1])
        elif len(part) == 1:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Eager(Progress):
    """A bar that is drawn at each step, not ten times a second."""

    def update(self, *words: Any, **fields: Any) -> None:
        super().update(*words, **fields, refresh=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal to which the log of the program goes."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.progress.Progress", Eager)
    found, log = Terminal(), logging.getLogger("embedcache")
    handler = logging.StreamHandler(found)
    log.addHandler(handler)
    monkeypatch.setattr(log, "level", logging.INFO)
    yield found
    log.removeHandler(handler)
    assert handler.stream is found


def test_the_screen_is_what_a_terminal_shows() -> None:
    assert screen("one\ntwo\r\x1b[2Kthree\x1b[1A\rO") == ["One", "three"]


def test_notes_stand_above_a_bar_and_nothing_of_it_stays(terminal: Terminal) -> None:
    log = logging.getLogger("embedcache.anything")
    with display.progress_on(terminal) as show:
        for done in range(1, 6):
            show(RunProgress(done, 10, 0, seconds=display.QUIET_SECONDS))
            log.info("note %d %s", done, "long " * 30)
        shown = screen(terminal.getvalue())
        assert shown[:-1] == [f"note {n} {'long ' * 30}".rstrip() for n in range(1, 6)]
        assert shown[-1].endswith("5 of 10 photos  2.5/s  2 s left")
    log.info("done")
    assert screen(terminal.getvalue()) == [*shown[:-1], "done"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_leaves_no_bar(terminal: Terminal, error: type[BaseException]) -> None:
    def fail() -> None:
        with display.progress_on(terminal) as show:
            show(RunProgress(3, 10, 0, seconds=display.QUIET_SECONDS))
            logging.getLogger("embedcache").info("a note")
            raise error

    with pytest.raises(error):
        fail()
    print("error: what is wrong", file=terminal)
    assert screen(terminal.getvalue()) == ["a note", "error: what is wrong"]


CHILD = """
    import os, signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    from embedcache import display
    from embedcache.extraction import networks
    from tests import stand_in

    def before(n):
        seen.append(n)
        for _ in range({times} if len(seen) == 3 else 0):
            handler = signal.getsignal(signal.SIGINT)
            # To the main thread, as a terminal's. Python may be just about to wait for a lock then,
            # and would handle it after this pass: another one wakes it, and counts as the same.
            for _ in range(60):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                ends = time.monotonic() + 1
                while signal.getsignal(signal.SIGINT) is handler and time.monotonic() < ends:
                    if handler is signal.default_int_handler:  # nobody waits for the second's end
                        return
                    time.sleep(0.01)
                if signal.getsignal(signal.SIGINT) is not handler:
                    break

    seen = []
    display.QUIET_SECONDS = 0
    networks.load_several = lambda *_, **__: [stand_in.backbone(before=before)]
    import cli
    sys.argv = ["embedcache", "extract", "photos", "--cache", "c", "--batch-size", "1"]
    cli.main()
"""


@pytest.mark.parametrize(
    ("times", "end"),
    [
        (1, "vectors are in c"),
        (2, "Interrupted: everything done so far is kept. Rerun the command to resume."),
    ],
)
def test_ctrl_c_leaves_whole_lines_on_the_terminal(
    times: int, end: str, make_photos: MakePhotos, tmp_path: Path
) -> None:
    make_photos(30)
    command = [sys.executable, "-c", textwrap.dedent(CHILD).replace("{times}", str(times))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as child:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while data := os.read(terminal, 1 << 16):
                written += data
    os.close(terminal)
    assert child.returncode == 130, written.decode()
    shown = screen(written.decode())
    assert times == 2 or shown[0] == "stopping: committing what is done ..."
    assert shown[-1] == end
    assert not [line for line in shown if "━" in line]
