"""A process that may have little memory, or write only small files: one sentence, nothing lost.

Each command runs as a process of its own, under the limit, and then again without it.
"""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos

SPEC = foreign("net", 64)
N = 40
ROOT = Path(__file__).parents[2]
FILE_BYTES = 4096  # less than a segment's vectors take, and more than its manifest
Limit = tuple[int, int]


def run(*words: object, limit: Limit | None = None) -> subprocess.CompletedProcess[str]:
    def bound() -> None:
        if limit is not None:
            resource.setrlimit(limit[0], (limit[1], limit[1]))

    command = [sys.executable, "-m", "embedcache", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, preexec_fn=bound, capture_output=True, text=True, timeout=120, env=environment
    )


def refused(*words: object, limit: Limit) -> str:
    """The one sentence with which a command ends under a limit."""
    done = run(*words, limit=limit)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two segments and a ref's worth of ids."""
    cache = Cache.open(tmp_path / "a.cache", create=True)
    space = cache.space(SPEC, create=True)
    fill(space, photos(*range(N // 2)))
    fill(space, photos(*range(N // 2, N)))
    cache.record_photos("f", [f"p{i}" for i in range(N)], photos(*range(N)))
    return cache.path


def check_rows(cache: Path, *, without: int | None = None) -> None:
    wanted = photos(*(n for n in range(N) if n != without))
    rows, found = Cache.open(cache).space(SPEC).read(wanted)
    assert found.all()
    assert (rows == model(wanted, SPEC.dim)).all()


FILES = resource.RLIMIT_FSIZE, FILE_BYTES
COMMANDS: dict[str, tuple[str, ...]] = {
    "compact": ("compact", "a.cache"),
    "forget": ("forget", "a.cache", "p3"),
    "push": ("push", "a.cache", "shared"),
    "export": ("export", "a.cache", "--backbone", "net", "--out", "x.npy"),
    "export to Parquet": ("export", "a.cache", "--backbone", "net", "--out", "x.parquet"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_limit_of_file_size_is_one_sentence_and_the_next_run_goes_on(
    what: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "ulimit -f" in refused(*COMMANDS[what], limit=FILES)
    check_rows(cache, without=3 if what == "forget" else None)
    again = run(*COMMANDS[what] if what != "forget" else ("forget", "a.cache", "--forgotten"))
    assert again.returncode == 0, again
    check_rows(cache, without=3 if what == "forget" else None)
    assert run("compact", cache).returncode == 0  # a draft may be left
    assert verify(cache).clean, str(verify(cache))
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert not left


def test_a_pull_under_a_limit_of_file_size_resumes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("push", cache, "shared").returncode == 0
    assert "ulimit -f" in refused("pull", "shared", "b.cache", limit=FILES)
    assert run("pull", "shared", "b.cache").returncode == 0
    check_rows(tmp_path / "b.cache")
    assert verify(tmp_path / "b.cache").clean


@pytest.mark.parametrize(
    ("limit", "says"),
    [((resource.RLIMIT_AS, 2_500_000 << 10), "ulimit -v"), (FILES, "ulimit -f")],
    ids=["memory", "file size"],
)
def test_an_extraction_under_a_limit_is_one_sentence_and_resumes(
    limit: Limit, says: str, make_photos: Callable[..., Path], tiny_weights: Path, tmp_path: Path
) -> None:
    place, backbone = tmp_path / "c.cache", f"local-dir:{tiny_weights}"
    words = ("extract", make_photos(24), "--cache", place, "--backbone", backbone)
    assert says in refused(*words, limit=limit)
    assert run(*words).returncode == 0
    [space] = Cache.open(place).spaces()
    assert len(space.digests()) == 24
    assert np.isfinite(space.read(space.digests())[0]).all()
    assert verify(place).clean


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("No module named 'torch'"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SystemError("error return without exception set"), False),  # there is no limit here
    ],
)
def test_errors_that_say_memory_ran_out_are_known(error: Exception, lacks: bool) -> None:
    assert disk.lacks_memory(error) is lacks
    outer = ValueError("of which that was the cause")
    outer.__cause__ = error
    assert disk.lacks_memory(outer) is lacks


def test_an_error_of_the_system_is_found_in_a_librarys() -> None:
    found = disk.system_error_in(ValueError("parquet: IO error: File too large (os error 27)"))
    assert found is not None
    assert found.errno == errno.EFBIG
    assert disk.system_error_in(ValueError("a bug")) is None
