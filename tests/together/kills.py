"""Two writers, compact, forget, merge, pull and push on one cache and one remote, killed at random.

    python -m tests.together.kills N_KILLS SEED      prints a JSON object with what was found

Every command is a forked process; whichever is chosen dies by SIGKILL at a random moment, and
begins anew. At the end each runs to its end once, and the oracle reads what is there.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from embedcache import disk
from embedcache.sharing.share import pull, push
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests.stores import U8, fill, model, photos
from tests.together import oracle, process
from tests.together.process import Running
from tests.together.world import Places, Row
from tests.together.zarr_rows import ZarrRows

N_PHOTOS: Final = 600
SPEC: Final = foreign("net", 8)
SCOPE: Final = "album-00000000"
WRITERS: Final = ("writer a", "writer b")


def id_of(n: int) -> tuple[str, ...]:
    return (f"photo-{n:04}.jpg",)


class Ledger:
    """The photos, and what has been acknowledged of them."""

    def __init__(self) -> None:
        contents = photos(*range(N_PHOTOS))
        self.rows = model(contents, SPEC.dim)
        self.contents = contents
        self.number = {row.tobytes(): n for n, row in enumerate(contents)}
        self.names = {SPEC.digest: "net"}
        self.written: set[int] = set()
        self.forgotten: set[int] = set()
        self.asked: set[int] = set()

    def bytes_of(self, row: Row) -> bytes:
        return bytes(self.rows[row[1]].astype("<f4").data)


@dataclass(slots=True)
class Field(Places):
    """One cache, a colleague's and their remote, with seven commands at work."""

    folder: Path
    ledger: Ledger
    rng: random.Random
    running: dict[str, Running] = field(default_factory=dict)
    victim: int | None = None
    n_kills: int = 0
    n_ends: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def call(self, name: str) -> Callable[[], object]:
        """What a command does, in its own process."""
        if name in WRITERS:
            seed = self.rng.randrange(1 << 30)
            return lambda: write(self.cache, self.ledger, seed)
        if name == "forget":
            if self.victim is None:
                self.victim = self.rng.choice(sorted(set(range(N_PHOTOS)) - self.ledger.asked))
                self.ledger.asked.add(self.victim)
            ids = id_of(self.victim)
            return lambda: forget(Cache.open(self.cache), ids) and None
        calls: dict[str, Callable[[], object]] = {
            "compact": lambda: compact(Cache.open(self.cache)) and None,
            "merge": lambda: merge(Cache.open(self.cache), [Cache.open(self.other)]) and None,
            "pull": lambda: pull(str(self.remote), Cache.open(self.cache)) and None,
            "push": lambda: push(Cache.open(self.cache), str(self.remote)) and None,
        }
        return calls[name]

    def begin(self, name: str) -> None:
        running = process.begin(name, self.call(name), root="")
        self.running[name] = running

    def reap(self) -> None:
        """Take note of the commands that have ended, and begin them again."""
        for name, running in list(self.running.items()):
            if running.has_ended():
                self.ended(name)
                self.begin(name)

    def ended(self, name: str) -> None:
        running = self.running.pop(name)
        assert running.end is not None
        self.n_ends[name] = self.n_ends.get(name, 0) + 1
        if running.end.status == "crashed":
            self.problems.append(f"{name} crashed: {oracle.shape(running.end.text)}")
        done = running.end.status == "done" or "knows no photo id" in running.end.text
        if name == "forget" and done and self.victim is not None:
            self.ledger.forgotten.add(self.victim)
            self.victim = None
        if name in WRITERS and isinstance(running.end.value, list):
            self.ledger.written |= set(running.end.value)

    def kill(self) -> None:
        """Kill one command that is at work."""
        name = self.rng.choice(sorted(self.running))
        running = self.running[name]
        if running.has_ended():
            self.ended(name)
        else:
            running.kill()
            del self.running[name]
            self.n_kills += 1
        self.begin(name)


def write(cache: Path, ledger: Ledger, seed: int) -> list[int]:
    """Embed some photos that the cache lacks and that nobody forgot; which are committed."""
    rng = np.random.default_rng(seed)
    space = Cache.open(cache).space(SPEC)
    space.salvage()
    missing = np.flatnonzero(space.status(ledger.contents) != 1)
    dead = oracle.dead_contents(cache)
    lacking = [int(n) for n in missing if oracle.mark(ledger.contents[n].tobytes()) not in dead]
    mine = rng.permutation(np.array(lacking, np.int64))[: rng.integers(5, 40)]
    with space.writer(n_rows=len(mine), name="net", about={}) as writer:
        for start in range(0, len(mine), 5):
            block = mine[start : start + 5]
            writer.add(ledger.contents[block], ledger.rows[block])
    return [int(n) for n in mine]


def play(n_kills: int, seed: int) -> Iterator[str]:
    """Kill `n_kills` commands, let all end, and say what is wrong."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="together-", dir=memory if memory.is_dir() else None))
    ledger = Ledger()
    arena = Field(root, ledger, random.Random(seed))
    zarr = ZarrRows()
    try:
        _prepare(arena)
        for name in (*WRITERS, "compact", "forget", "merge", "pull", "push"):
            arena.begin(name)
        while arena.n_kills < n_kills:
            time.sleep(arena.rng.uniform(0.001, 0.04))
            arena.reap()
            arena.kill()
        yield from _recover(arena)
        yield from arena.problems
        yield from _judge(arena, zarr)
        print(json.dumps({"ends": arena.n_ends, "kills": arena.n_kills}), file=sys.stderr)
    finally:
        for running in arena.running.values():
            running.kill()
        zarr.close()
        shutil.rmtree(root, ignore_errors=True)


def _prepare(arena: Field) -> None:
    ledger = arena.ledger
    cache = Cache.open(arena.cache, create=True)
    names = [name for n in range(N_PHOTOS) for name in id_of(n)]
    cache.record_photos(SCOPE, names, ledger.contents)
    for start in range(0, N_PHOTOS // 2, 50):
        numbers = range(start, start + 50)
        fill(cache.space(SPEC, create=True), _some(ledger, numbers))
        ledger.written |= set(numbers)
    other = Cache.open(arena.other, create=True)
    fill(other.space(SPEC, create=True), _some(ledger, range(280, 340)))
    fill(other.space(SPEC, create=True), _some(ledger, range(100, 130)))
    push(cache, str(arena.remote))
    push(other, str(arena.remote))


def _some(ledger: Ledger, numbers: range) -> U8:
    return ledger.contents[list(numbers)]


def _recover(arena: Field) -> Iterator[str]:
    """Stop everything, then run each command to its end, alone."""
    for running in arena.running.values():
        running.kill()
    arena.running.clear()
    names = ["forget"] if arena.victim is not None else []
    for name in (*names, *WRITERS, "merge", "pull", "push", "compact"):
        end = process.finish(name, arena.call(name))
        if end.status != "done" and "knows no photo id" not in end.text:
            yield f"{name} run again fails: {oracle.shape(end.text)}"
        if name == "forget":
            arena.ledger.forgotten |= arena.ledger.asked
        if name in WRITERS and isinstance(end.value, list):
            arena.ledger.written |= set(end.value)


def _judge(arena: Field, zarr: ZarrRows) -> Iterator[str]:
    ledger = arena.ledger
    found = oracle.held(arena.cache, ledger, zarr)
    yield from found.wrong
    if lost := ledger.written - ledger.asked - {n for _, n in found.rows}:
        yield f"lost: {len(lost)} rows, such as {sorted(lost)[:5]}"

    def read() -> dict[str, object]:
        rows, there = Cache.open(arena.cache).space(SPEC).read(ledger.contents)
        wrong = there & (rows != ledger.rows).any(axis=1)
        report = verify(arena.cache)
        return {
            "found": np.flatnonzero(there).tolist(),
            "wrong": np.flatnonzero(wrong).tolist(),
            "verify": [f"{finding.path}: {finding.problem}" for finding in report.findings],
        }

    end = process.finish("read", read)
    if end.status != "done":
        yield f"reading fails: {oracle.shape(end.text)}"
        return
    if lost := ledger.written - ledger.asked - set(end.value["found"]):
        yield f"lost to the product: {len(lost)} rows, such as {sorted(lost)[:5]}"
    if back := ledger.forgotten & set(end.value["found"]):
        yield f"back: {len(back)} rows, such as {sorted(back)[:5]}"
    if end.value["wrong"]:
        yield f"wrong: {len(end.value['wrong'])} rows"
    yield from sorted({f"verify: {oracle.shape(text)}" for text in end.value["verify"]})
    for trace in oracle.traces(arena.cache, ledger, ledger.forgotten, id_of):
        yield f"bytes left: {trace}"


def main() -> None:
    disk.sync = lambda fd: None
    disk.sync_folder = lambda path: None
    process.install()
    found = list(play(int(sys.argv[1]), int(sys.argv[2])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
