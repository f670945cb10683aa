"""Two `fit-head --out` into one folder at once: the last one wins wholly, and it always loads."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heads
from embedcache.errors import HeadError
from heads import folders
from heads.dataset.arrays import from_arrays
from heads.fitting.result import Fit

MINE = {"notes.txt": "mine", "plans/a/b.txt": "mine, deeper"}
N_FILES = 2  # fit.json and the list
N_FILES_OF_HEAD = 4


def fit(seed: int, *names: str) -> Fit:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(80, 4)).astype(np.float32)
    return heads.fit(from_arrays(vectors, 40 + 10 * vectors[:, 0]), heads=names, resamples=20)


def state(out: Path) -> tuple[list[str], list[str], int]:
    """The heads that fit.json lists, those that lie there, and how many files are of fits."""
    listed = sorted(json.loads((out / "fit.json").read_bytes())["heads"])
    there = sorted(path.parent.name for path in out.glob("*/card.json"))
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return listed, there, len(files - MINE.keys())


def check(out: Path) -> None:
    """A folder is one fit, whole, with the user's files; nothing lies beside it."""
    assert heads.load(out).name
    listed, there, n_files = state(out)
    assert there == listed
    assert n_files == N_FILES + N_FILES_OF_HEAD * len(there)
    assert {name: (out / name).read_text() for name in MINE} == MINE
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def saves(one: Fit, out: Path, n: int) -> None:
    for _ in range(n):
        try:
            one.save(out)
        except HeadError as error:
            assert "run this again" in str(error)  # noqa: PT017 - one of two ways to end


def loads(out: Path, n: int) -> None:
    for _ in range(n):
        assert heads.load(out).name


def at_once(*acts: Callable[[], None]) -> list[int]:
    """Run each in a process of its own; returns their exit statuses."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=act) for act in acts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode or 0 for process in processes]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An earlier fit's folder, with files of the user in it."""
    place = tmp_path / "place" / "out"
    fit(0, "ridge").save(place)
    for name, text in MINE.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def test_two_saves_at_once_leave_one_fit_whole_and_readers_always_load(out: Path) -> None:
    first, second = fit(1, "ridge"), fit(2, "const", "ridge")
    statuses = at_once(
        lambda: saves(first, out, 30), lambda: saves(second, out, 30), lambda: loads(out, 300)
    )
    assert statuses == [0, 0, 0]
    check(out)


MOMENTS = ("rename", "carry over", "keep")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_save_in_the_middle_of_another_waits_for_it(
    moment: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other begins at the worst moment of this one, and ends after it: the last one wins."""
    first, second = fit(1, "ridge"), fit(2, "const", "ridge")
    context = multiprocessing.get_context("fork")
    others: list[Any] = []

    def begin() -> None:
        if not others:
            others.append(context.Process(target=lambda: saves(second, out, 1)))
            others[0].start()
            others[0].join(0.5)

    def before(name: str) -> None:
        real = getattr(folders, name)

        def call(*arguments: Any) -> Any:
            begin()
            return real(*arguments)

        monkeypatch.setattr(folders, name, call)

    if moment == "rename":
        rename = Path.rename

        def then(path: Path, target: Path) -> Path:
            done = rename(path, target)
            if path == out:
                begin()
            return done

        monkeypatch.setattr(Path, "rename", then)
    else:
        before("carry_over" if moment == "carry over" else "_keep")
    first.save(out)
    others[0].join(60)
    assert others[0].exitcode == 0
    check(out)
    assert state(out)[0] == sorted(second.heads)


def test_a_folder_that_cannot_be_locked_is_still_saved(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr("fcntl.flock", refuse)
    fit(1, "const", "ridge").save(out)
    check(out)
