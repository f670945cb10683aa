"""Saves a fit again and again, each time killed one file operation later; prints what was left.

    python -m tests.heads.kill_worker FOLDER

One JSON line for each kill: after a look, and after the next save.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import heads
from embedcache.errors import HeadError
from heads import saved
from heads.dataset.arrays import from_arrays

OPERATIONS = ("mkdir", "open", "rename", "replace", "unlink", "rmdir")
MINE = {"notes.txt": "mine", "ridge/plot.png": "mine too", "plans/a/b.txt": "mine, deeper"}


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(120, 4)).astype(np.float32)
    data = from_arrays(vectors, 40 + 10 * vectors[:, 0])
    fit = heads.fit(data, heads=("ridge",), resamples=20)
    fit.save(folder / "first" / "out")
    for name, text in MINE.items():
        (folder / "first" / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "first" / "out" / name).write_text(text)
    n, killed = 0, True
    while killed:
        n += 1
        place = folder / str(n)
        shutil.copytree(folder / "first", place)
        killed = in_a_child(partial(killed_at, n, partial(fit.save, place / "out")))
        left = sorted(path.name for path in place.iterdir())
        in_a_child(partial(saved.check_out, place / "out"))
        looked = state(place)
        in_a_child(partial(fit.save, place / "out"))
        print(json.dumps({"n": n, "left": left, "looked": looked, "saved": state(place)}))
        shutil.rmtree(place)


def in_a_child(act: Callable[[], object]) -> bool:
    """Run in a process of its own; returns whether it was killed. Its errors are this one's."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a save failed")
    return os.WIFSIGNALED(status)


def killed_at(n: int, act: Callable[[], object]) -> None:
    """End this process as a power cut would, before its n-th operation on a file."""
    n_done = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal n_done
            n_done += 1
            if n_done == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    act()


def state(place: Path) -> dict[str, Any]:
    """What stands beside the folder, which of the user's files are in it, and whether it loads."""
    out = place / "out"
    mine = [n for n, text in MINE.items() if (out / n).is_file() and (out / n).read_text() == text]
    try:
        loads = heads.load(out).name
    except HeadError as error:
        loads = str(error)
    files = [path for path in out.rglob("*") if path.is_file()]
    beside = sorted(path.name for path in place.iterdir())
    return {"beside": beside, "mine": mine, "loads": loads, "n_files": len(files)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
