"""Writes the golden store of format 2: that of format 1 with a log, a lift and successors.

Run once per format, then never again: python -m tests.golden.make_2 tests/golden/format-2
"""

import sys
from pathlib import Path

from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from tests.golden import make


def main(path: Path) -> None:
    make.main(path)  # pins all, then forgets x.jpg: photo 7
    cache = Cache.open(path)
    space = cache.space(make.SPEC)
    with space.writer(n_rows=2, name="golden", about={}) as writer:
        writer.add(make.contents(8, 10), make.vectors(8, 10))
    cache.record_photos("golden folder", ["h.jpg", "i.jpg"], make.contents(8, 10))
    forget(cache, ["h.jpg"])
    cache.lift(make.contents(8), scope="golden folder", ids=["h.jpg"])
    with space.writer(n_rows=1, name="golden", about={}) as writer:
        writer.add(make.contents(8), make.vectors(8))
    cache.record_photos("golden folder", ["h.jpg"], make.contents(8))
    compact(cache)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
