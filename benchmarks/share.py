"""How fast push and pull are, as ratios to plain copies of the same bytes, measured in one run.

    python benchmarks/share.py [--rows 20000] [--dim 2048] [--rounds 3] [--folder DIR] [--out FILE]

"Plain" moves the same files through the same library (obstore to an S3 protocol server on loopback;
for a folder, reads and writes), eight at once, and computes each one's sha256 on the way. The bytes
that partial pulls move are counted on a cache of 76,000 rows of the same width.
"""

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import obstore

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounds import medians, print_table
from embedcache.sharing.share import pull, push
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests import fakes
from tests.stores import photos

SEGMENT_ROWS = 16_384
BLOCK_BYTES = 4 << 20
PHOTOS_PER_SECOND = 15.8  # Inception v3 on two cores, end to end (docs/decisions/025)


def fill(path: Path, numbers: range, dim: int) -> Cache:
    """A cache of random vectors, in segments as an extraction writes them."""
    cache = Cache.open(path, create=True)
    space = cache.space(foreign("net", dim), create=True)
    rng = np.random.default_rng(0)
    for start in range(numbers.start, numbers.stop, SEGMENT_ROWS):
        part = range(start, min(start + SEGMENT_ROWS, numbers.stop))
        with space.writer(n_rows=len(part), name="net", about={}) as writer:
            for first in range(part.start, part.stop, 256):
                block = range(first, min(first + 256, part.stop))
                writer.add(photos(*block), rng.standard_normal((len(block), dim), np.float32))
    return cache


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """A bucket on an S3 protocol server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=folder)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_REGION="us-east-1",
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        urlopen(Request(f"http://127.0.0.1:{port}/team", method="PUT"), timeout=30).close()
        yield "s3://team"
    finally:
        server.terminate()
        server.wait()


def files_of(cache: Cache) -> list[str]:
    folder = cache.path / "spaces"
    return [str(p.relative_to(cache.path)) for p in folder.rglob("*") if p.is_file()]


def plain_upload(cache: Cache, url: str) -> None:
    store = obstore.store.from_url(url, client_options={"allow_http": True})

    def send(path: str) -> None:
        def blocks() -> Iterator[bytes]:
            running = sha256()
            with open(cache.path / path, "rb") as file:
                while block := file.read(BLOCK_BYTES):
                    running.update(block)
                    yield block

        if (cache.path / path).stat().st_size > 2 * BLOCK_BYTES:
            obstore.put(store, path, blocks(), chunk_size=2 * BLOCK_BYTES, max_concurrency=4)
        else:
            obstore.put(store, path, b"".join(blocks()))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, files_of(cache)))


def plain_download(cache: Cache, url: str, target: Path) -> None:
    store = obstore.store.from_url(url, client_options={"allow_http": True})

    def fetch(path: str) -> None:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        running = sha256()
        with open(target / path, "wb") as file:
            for block in obstore.get(store, path).stream(min_chunk_size=BLOCK_BYTES):
                running.update(block)
                file.write(block)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, files_of(cache)))


def plain_copy(cache: Cache, target: Path) -> None:
    def copy(path: str) -> None:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        running = sha256()
        with open(cache.path / path, "rb") as source, open(target / path, "wb") as file:
            while block := source.read(BLOCK_BYTES):
                running.update(block)
                file.write(block)
            os.fsync(file.fileno())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, files_of(cache)))


def rates(folder: Path, n_rows: int, dim: int, rounds: int) -> list[str]:
    cache = fill(folder / "ours", range(n_rows), dim)

    def pulled(url: str, name: str) -> None:
        pull(url, Cache.open(folder / name, create=True))
        shutil.rmtree(folder / name)

    def downloaded(url: str, name: str) -> None:
        plain_download(cache, url, folder / name)
        shutil.rmtree(folder / name)

    def copied(name: str) -> None:
        plain_copy(cache, folder / name)
        shutil.rmtree(folder / name)

    def pushed(name: str) -> None:
        push(cache, str(folder / name))
        shutil.rmtree(folder / name)

    numbers = count()

    def named(work: Callable[[str], object]) -> None:
        work(f"run-{next(numbers)}")

    lines = []
    with s3(folder) as bucket:
        push(cache, f"{bucket}/ready")
        plain_upload(cache, f"{bucket}/plain")
        pairs: dict[str, dict[str, Callable[[str], object]]] = {
            "push to S3": {
                "plain": lambda name: plain_upload(cache, f"{bucket}/{name}"),
                "embedcache": lambda name: push(cache, f"{bucket}/{name}"),
            },
            "pull from S3": {
                "plain": lambda name: downloaded(f"{bucket}/plain", name),
                "embedcache": lambda name: pulled(f"{bucket}/ready", name),
            },
        }
        push(cache, str(folder / "shared"))
        pairs["push to a folder"] = {"plain": copied, "embedcache": pushed}
        pairs["pull from a folder"] = {
            "plain": copied,
            "embedcache": lambda name: pulled(str(folder / "shared"), name),
        }
        for what, contenders in pairs.items():
            took = medians(
                {who: partial(named, work) for who, work in contenders.items()}, rounds=rounds
            )
            for who, seconds in took.items():
                ratio = took["plain"] / seconds
                lines.append(f"| {what} | {who} | {seconds:.2f} s | {ratio:.2f} |")
            if what == "pull from S3":
                ready = took["embedcache"]
                again = n_rows / PHOTOS_PER_SECOND
                lines.append(
                    f"| a second member's cache of {n_rows:,} | recomputed at "
                    f"{PHOTOS_PER_SECOND} photos/s | {again:.0f} s | {again / ready:.0f} times |"
                )
    return lines


def traffic(folder: Path, dim: int) -> list[str]:
    """Bytes through the remote's interface, metadata included."""
    cache = fill(folder / "large", range(76_000), dim)
    shared = fakes.folder(folder / "large-shared")
    push(cache, shared)
    wanted = photos(*random.Random(0).sample(range(76_000), 500))
    lines = []

    def line(what: str, work: Callable[[fakes.Flaky], object]) -> None:
        counted = fakes.counted(shared)
        start = time.perf_counter()
        work(counted)
        seconds = time.perf_counter() - start
        moved = f"{counted.n_bytes / 1e6:.3f} MB, {counted.n_requests} requests"
        lines.append(f"| {what} | {moved} | {seconds:.2f} s | |")

    few = Cache.open(folder / "few", create=True)
    line("pull of 500 rows of 76,000", lambda r: pull(r, few, photos=wanted))
    line("the same again", lambda r: pull(r, few, photos=wanted))
    line("a repeated push of all", lambda r: push(cache, r))
    fill(cache.path, range(80_000, 80_010), dim)
    line("push of 10 new rows", lambda r: push(cache, r))
    return lines


def measured(given: argparse.Namespace, folder: Path) -> list[str]:
    return [
        "| what | who | median | plain / this |",
        "|---|---|---|---|",
        *rates(folder, given.rows, given.dim, given.rounds),
        *traffic(folder, given.dim),
    ]


if __name__ == "__main__":
    print_table(
        __doc__,
        measured,
        rows=20_000,
        rounds=3,
        versions=f"obstore {obstore.__version__}, moto as the S3 server",
    )
