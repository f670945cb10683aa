"""Writing, crashing, salvaging, merging, compacting and forgetting, in any order, equal a dict."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos

SPEC = foreign("net", 4)
EVERYTHING = photos(*range(16))
some = st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True)


class Interleaving(RuleBasedStateMachine):
    """`rows` is what the cache must hold; `drafts` what a salvage must bring."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(disk, "sync", lambda fd: None)
        self.patch.setattr(disk, "sync_folder", lambda path: None)
        self.patch.setattr("embedcache.store.rows.INDEX_SEGMENTS", 3)
        self.folder = Path(tempfile.mkdtemp())
        self.rows: set[int] = set()
        self.drafts: set[int] = set()
        self.gone: set[int] = set()
        self.refs: dict[str, set[int]] = {}

    @initialize()
    def begin(self) -> None:
        self.cache = Cache.open(self.folder / "a", create=True)
        self.space = self.cache.space(SPEC, create=True)
        self.cache.record_photos("f", [str(n) for n in range(16)], EVERYTHING)

    @rule(numbers=some)
    def write(self, numbers: list[int]) -> None:
        fill(self.space, photos(*numbers))
        self.rows |= set(numbers) - self.gone

    @rule(numbers=some)
    def crash(self, numbers: list[int]) -> None:
        writer = self.space.writer(n_rows=3, name="net", about={})
        writer.add(photos(*numbers), model(photos(*numbers), 4))
        writer.abandon()
        self.drafts |= set(numbers)

    @rule()
    def salvage(self) -> None:
        self.space.salvage()
        self.rows |= self.drafts - self.gone
        self.drafts = set()

    @rule(numbers=some)
    def merge(self, numbers: list[int]) -> None:
        other = Cache.open(self.folder / "other", create=True)
        fill(other.space(SPEC, create=True), photos(*numbers))
        merge(self.cache, [other])
        shutil.rmtree(other.path)
        self.rows |= (set(numbers) | self.drafts) - self.gone  # at its end it salvages
        self.drafts = set()

    @rule(target_rows=st.sampled_from([4, 100]))
    def compact(self, target_rows: int) -> None:
        compact(self.cache, target_rows=target_rows)
        self.rows |= self.drafts - self.gone
        self.drafts = set()

    @rule()
    def reopen(self) -> None:
        self.cache = Cache.open(self.cache.path)
        self.space = self.cache.space(SPEC)

    @precondition(lambda self: len(self.gone) < 12)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        known = sorted(set(range(16)) - self.gone)
        number = data.draw(st.sampled_from(known))
        forget(self.cache, [str(number)])
        self.gone.add(number)
        self.rows |= self.drafts
        self.drafts = set()
        self.rows -= self.gone
        for pinned in self.refs.values():
            pinned.discard(number)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def lift(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.gone)))
        self.cache.lift(photos(number), scope="f", ids=[str(number)])
        fill(self.space, photos(number))
        self.cache.record_photos("f", [str(number)], photos(number))
        self.gone.discard(number)
        self.rows.add(number)

    @rule()
    def pin(self) -> None:
        name = f"r{len(self.refs)}"
        write_ref(self.cache, name)
        self.refs[name] = set(self.rows)

    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        if not hasattr(self, "cache"):
            return
        rows, found = self.space.read(EVERYTHING)
        assert set(np.flatnonzero(found).tolist()) == self.rows
        assert (rows[found] == model(EVERYTHING, 4)[found]).all()
        for name, pinned in self.refs.items():
            then = Cache.open(self.cache.path, ref=name).space(SPEC)
            assert set(np.flatnonzero(then.read(EVERYTHING)[1]).tolist()) == pinned

    def teardown(self) -> None:
        self.space.salvage()  # a draft that nobody holds is a finding
        report = verify(self.cache)
        self.patch.undo()
        shutil.rmtree(self.folder)
        assert report.clean, str(report)
        assert report.differing == 0


calm = settings(
    max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


class ManyInterleavings(Interleaving):
    """The long form."""


TestInterleavings = Interleaving.TestCase
TestInterleavings.settings = calm
TestManyInterleavings = pytest.mark.torture(ManyInterleavings.TestCase)
TestManyInterleavings.settings = settings(calm, max_examples=400, stateful_step_count=30)
