"""Each path that a command takes, where it is missing, too long, or a folder in a file's place."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from heads.labels.simulate import TRUTH
from tests.heads.study import studies

Run = Callable[..., tuple[int, str, str]]

WHOLE = ("--backbone", "whole")
COMMANDS = (
    ("extract", "{photos}", "--cache", "no.cache", "--dry-run"),
    ("extract", "{photos}", "--cache", "{new}.cache", "--backbone", "local-dir:{net}"),
    ("labels", "--users", "{users.csv}", "--swipes", "{swipes.csv}", "--out", "{new}.csv"),
    ("fit-head", "--cache", "{photos.cache}", *WHOLE, "--labels", "{labels.csv}")
    + ("--target", "like_ratio", "--head", "ridge", "--out", "{new}"),
    ("predict", "{head}", "{photos}", "--cache", "{photos.cache}", "--out", "{new}.csv"),
    ("study", "{study.toml}", "--out", "{new}", "--cache", "{photos.cache}"),
    ("study", "{new}.toml", "--init"),
    ("simulate", "--users", "80", "--swipes", "100", "--out", "{new}"),
    ("demo", "--photos", "60", "--out", "{new}"),
    ("info", "{photos.cache}"),
    ("verify", "{photos.cache}"),
    ("export", "{photos.cache}", *WHOLE, "--out", "{new}.npy"),
    ("import", "{new}.cache", "{v.npy}", "--ids", "{ids.csv}", "--photos", "{photos}")
    + ("--name", "x"),
    ("merge", "{new}.cache", "{photos.cache}"),
    ("compact", "{photos.cache}"),
    ("forget", "{photos.cache}", "u0001"),
    ("ref", "{photos.cache}", "name"),
    ("push", "{photos.cache}", "{new}"),
    ("pull", "{shared}", "{new}.cache", "--photos", "{photos}"),
)


def wrong(folder: Path, suffix: str) -> Iterator[Path]:
    """Paths that no command can read or write under a name of this suffix."""
    (folder / "file").write_text("text\n")
    (folder / f"folder{suffix}").mkdir(exist_ok=True)
    (folder / f"folder{suffix}" / "notes").write_text("text\n")
    yield folder / "file" / f"inside{suffix}"
    yield folder / (f"folder{suffix}" if suffix else "file")
    yield folder / ("n" * 300 + suffix)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_a_wrong_path_is_one_sentence(command: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    studies.planted(world, n=60)
    users = pl.read_csv(world / "users.csv").rename({TRUTH: "like_ratio"})
    users.drop("photo").write_csv(world / "labels.csv")
    users.select("user_id").write_csv(world / "ids.csv")
    np.save(world / "v.npy", np.zeros((60, 4), np.float32))
    (world / "study.toml").write_text(
        'labels = "labels.csv"\nheads = ["ridge"]\n[[target]]\ncolumn = "like_ratio"\n'
        '[[backbone]]\nname = "whole"\n'
    )
    if command[0] == "pull":
        assert run("push", world / "photos.cache", world / "shared")[0] == 0
    if command[0] == "predict":
        fit = ("--labels", world / "labels.csv", "--target", "like_ratio", "--head", "ridge")
        there = ("--cache", world / "photos.cache", "--out", world / "head")
        assert run("fit-head", *WHOLE, *fit, *there)[0] == 0
    for at, word in enumerate(command):
        if "{" not in word:
            continue
        for path in wrong(tmp_path, Path(word.strip("{}").replace("}", "")).suffix):
            words = [w.replace("{", f"{world}/").replace("}", "") for w in command]
            prefix = word.partition("{")[0]
            words[at] = f"{prefix}{path}"
            status, _, err = run(*words)
            found = [line for line in err.splitlines() if line.startswith("error: ")]
            assert (status, len(found)) == (1, 1), (words, err)
            assert "Errno" not in err
            assert path.name in found[0] or path.parent.name in found[0], found
