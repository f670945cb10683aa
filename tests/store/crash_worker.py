"""A writer that the crash tests kill: embeds what a cache lacks, in its own order, until done.

python -m tests.store.crash_worker CACHE N_PHOTOS SEED PAUSE_SECONDS [compact]
"""

import random
import sys
import time

import numpy as np

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.upkeep.compaction import compact
from tests.stores import model, photos

SPEC = foreign("net", 64)
BATCH = 20


def main(path: str, n_photos: int, seed: int, pause: float, *, compacts: bool) -> None:
    rng = random.Random(seed)
    space = Cache.open(path, create=True).space(SPEC, create=True)
    space.salvage()
    if compacts:
        compact(Cache.open(path), target_rows=2000)
    numbers = list(range(n_photos))
    rng.shuffle(numbers)
    everything = photos(*numbers)
    missing = everything[space.status(everything) != OK]
    while len(missing):
        n_rows = rng.randrange(40, 400)
        mine, missing = missing[:n_rows], missing[n_rows:]
        mine = mine[space.status(mine) != OK]
        with space.writer(n_rows=n_rows, name="net", about={}) as writer:
            for start in range(0, len(mine), BATCH):
                batch = np.ascontiguousarray(mine[start : start + BATCH])
                writer.add(batch, model(batch, SPEC.dim))
                time.sleep(pause)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]),
        compacts="compact" in sys.argv[5:],
    )
