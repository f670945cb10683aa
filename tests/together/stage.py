"""One copy of the world while operations run in it, and its judges."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedcache.remotes.remote import Remote
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget_forgotten
from embedcache.upkeep.verify import verify
from tests.together import oracle
from tests.together.clocks import HERE, Host
from tests.together.facts import Facts, Promise
from tests.together.operations import READ, Operation
from tests.together.places import SOUND, Flaw, Place
from tests.together.process import End, Running, begin, finish
from tests.together.world import N_PHOTOS, NET, Album, Row, World, ids_of
from tests.together.zarr_rows import ZarrRows

# What `verify` may say of a cache in which a process died, or still runs; its advice removes it.
SOMEBODY_DIED = ("was left by", "still stores", "is not deleted yet", "named by no entry")

# What it says of a shared copy until somebody purges it.
NOT_PURGED = "of forgotten photos, which no pull brings"


class Stage:
    """One copy of the world while operations run in it."""

    def __init__(self, world: World, album: Album, zarr: ZarrRows, place: Place) -> None:
        self.world = world
        self.album = album
        self.zarr = zarr
        self.place = place
        self.facts = Facts()
        self.promises: dict[int, tuple[Operation, Promise]] = {}
        self.wrong: list[str] = []
        self.killed = False
        # What the world begins with is no news.
        [draft] = world.cache.glob("spaces/*/segments/*/writing")
        self.draft = draft.parent.relative_to(world.cache).as_posix()
        self.damaged: set[Row] = set()  # until it is repaired
        self.hurt: set[Row] = set()  # what refs that pinned it have lost

    def damage(self, row: Row) -> None:
        """Change a byte of a row that two segments hold, in the one whose rows count.

        From now on until `repair` an operation may refuse, and zarr may fail to read a segment.
        """
        self.world.damage(self.album, row)
        self.damaged = self.hurt = {row}

    def repair(self) -> None:
        """Where there was damage: what a user does about it, so that the rest can be judged."""
        if self.damaged:
            end = finish("repair", lambda: verify(self.world.cache, repair=True) and None)
            if end.status != "done":
                self.wrong.append(f"repair fails: {oracle.shape(end.text)}")
            self.damaged = set()

    def pull_and_forget(self) -> None:
        """What push advises where somebody else forgot what is still here."""

        def follow() -> None:
            cache = Cache.open(self.world.cache)
            pull(self.place.open(SOUND, staging_of(cache)), cache, with_ids=True)
            forget_forgotten(cache)

        end = finish("advice", follow)
        if end.status != "done":
            self.wrong.append(f"pull and forget --forgotten fail: {oracle.shape(end.text)}")

    def begin(
        self, op: Operation, host: Host = HERE, flaw: Flaw = SOUND, *, fine: bool = False
    ) -> Running:
        promise = self.facts.begins(op)
        running = begin(
            op.name,
            lambda: op.call(self.world, self.album, self._remote(op, flaw) if op.remote else ""),
            root=f"{self.world.folder}/",
            before=host.settle,
            fine=fine,
        )
        self.promises[running.pid] = op, promise
        return running

    def _remote(self, op: Operation, flaw: Flaw) -> Remote | str:
        member = self.world.other if op.removes else self.world.cache
        return self.place.open(flaw, staging_of(Cache.open(member)))

    def ended(self, running: Running) -> bool:
        """Take note of how an operation ended; True if it succeeded."""
        op, promise = self.promises[running.pid]
        assert running.end is not None
        end = running.end
        if end.status == "crashed":
            self.wrong.append(f"{op.name} crashed: {oracle.shape(end.text)}")
        if end.status == "refused" and op.frees and "a ref keeps what it pins" in end.text:
            self.facts.refuses_for_a_ref(op, promise)
            end = running.end = End("done", end.text)
        if end.status == "refused" and _done_before(op, end):
            end = running.end = End("done", end.text)
        if end.status != "done":
            self.facts.ends(op, promise)
            return False
        self.facts.succeeds(op, promise)
        if op.names and end.value:
            self.facts.names(op, taken=end.value["taken"])
        self._check_value(op, promise, end)
        return True

    def _check_value(self, op: Operation, promise: Promise, end: End) -> None:
        if op.reads and end.value is not None:
            self._check_read(end.value, promise.must & self.facts.must, promise)
        elif op.name == "repair" and end.value:
            for text in () if self.damaged else end.value["findings"]:
                if not any(excuse in text for excuse in SOMEBODY_DIED):
                    self.wrong.append(f"repair of a cache without damage: {oracle.shape(text)}")

    def _check_read(self, value: dict[str, Any], must: set[Row], promise: Promise) -> None:
        rows = {(space, n) for space, numbers in value["found"].items() for n in numbers}
        self._lost("read", must - rows)
        self._back("read", {n for _, n in rows} & promise.never)
        self.wrong += [f"read returns a wrong row: {row}" for row in value["wrong"]]
        for name in sorted(promise.gone & set(value["ids"])):
            self.wrong.append(f"back: id {name}")

    def kill(self, running: Running) -> None:
        running.kill()
        self.facts.ends(*self.promises[running.pid])
        self.killed = True

    def look(self) -> None:
        """At a pause: is every row that must be readable there, and none that must not be?"""
        if self.damaged:
            return
        found = oracle.held(self.world.cache, self.album, self.zarr)
        self._lost("cache", self.facts.must - found.rows)
        self._back("cache", {n for _, n in found.rows} & self.facts.never)
        self.wrong += found.wrong
        with self.place.folder() as folder:
            there = oracle.held(folder, self.album, self.zarr)
        self._lost("remote", self.facts.must_remote - there.rows)
        self._back("remote", {n for _, n in there.rows} & self.facts.never_remote)
        self.wrong += [f"remote: {text}" for text in there.wrong]

    def finish(self) -> None:
        """When all have ended: the product's own readers, refs, verify, and every byte."""
        self.facts.all_have_ended()
        self.look()
        if any(op.removes for op, _ in self.promises.values()):
            # What a colleague forgot may have come as a tombstone; its rows wait for this.
            end = finish("forget", lambda: forget_forgotten(Cache.open(self.world.cache)) and None)
            if end.status != "done":
                self.wrong.append(f"forget --forgotten fails: {oracle.shape(end.text)}")
        named = self._check_all(SOMEBODY_DIED if self.killed else (self.draft,))
        for trace in oracle.traces(self.world.cache, self.album, self.facts.never, ids_of):
            if not any(oracle.shape(path) in trace for path in named):
                self.wrong.append(f"bytes left: {trace}")
        if [path for path in named if path != self.draft or self.facts.due]:
            # Somebody died here. What `verify` says of it must help, and lose nothing.
            end = finish("advice", lambda: _follow_advice(self.world.cache))
            if end.status != "done":
                self.wrong.append(f"what verify advises fails: {oracle.shape(end.text)}")
            self.look()
            self._check_all(())
            left = oracle.traces(self.world.cache, self.album, self.facts.never, ids_of)
            self.wrong += [f"bytes left after all advice: {trace}" for trace in left]
        self._check_remote()

    def check_nothing_left(self) -> None:
        """After a rerun alone: `verify` is content, there too, and no byte forgotten is left.

        Only the draft that the world begins with may be there, where the operation had no reason
        to look at it.
        """
        self.damaged = set()
        self.facts.all_have_ended()
        self.look()
        self._check_all((self.draft,))
        for trace in oracle.traces(self.world.cache, self.album, self.facts.never, ids_of):
            if self.draft not in trace:
                self.wrong.append(f"bytes left: {trace}")
        self._check_remote()

    def _check_remote(self) -> None:
        self.wrong += [f"cache: {text}" for text in oracle.dangling_refs(self.world.cache)]
        with self.place.folder() as folder:
            self.wrong += [f"remote: {text}" for text in oracle.dangling_refs(folder)]
            left = oracle.traces(folder, self.album, self.facts.never_remote, ids_of)
        self.wrong += [f"bytes left on the remote: {trace}" for trace in left]
        if any(op.remote for op, _ in self.promises.values()):
            self._check_verify_of_remote()

    def _check_verify_of_remote(self) -> None:
        """It names each segment with forgotten rows and nothing else; what it advises ends that."""
        found = self._verify_remote()
        with self.place.folder() as folder:
            storing = oracle.held(folder, self.album, self.zarr).storing
        stored = [text for text in found if NOT_PURGED in text]
        wrong = [text for text in found if text not in stored]
        wrong += [
            f"names a segment without forgotten rows: {text}"
            for text in stored
            if "photo id" not in text and not any(segment in text for segment in storing)
        ]
        wrong += [
            f"does not name a segment with forgotten rows: {segment}"
            for segment in storing
            if not any(segment in text for text in stored)
        ]
        if stored:
            self.pull_and_forget()
            end = finish("advice", self._purge)
            wrong += [f"its advice fails: {end.text}"] if end.status != "done" else []
            wrong += [f"after its advice: {text}" for text in self._verify_remote()]
        self.wrong += [f"verify of the remote: {oracle.shape(text)}" for text in wrong]

    def _verify_remote(self) -> list[str]:
        remote = self.place.open(SOUND, "")
        end = finish("verify", lambda: list(verify_remote(remote).findings))
        return [end.text] if end.value is None else end.value

    def _purge(self) -> None:
        cache = Cache.open(self.world.cache)
        push(cache, self.place.open(SOUND, staging_of(cache)), with_ids=True, purge=True)

    def _check_all(self, excused: Sequence[str]) -> list[str]:
        """Ask the product; returns what `verify` names as left behind.

        excused: findings that hold one of these texts are no violation.
        """
        end = finish("check", self._check)
        if end.status != "done":
            self.wrong.append(f"check afterwards: {oracle.shape(end.text)}")
            return []
        self._check_read(end.value["read"], self.facts.must, self.facts.promise())
        self._check_refs(end.value["refs"])
        named = []
        for path, problem in end.value["verify"]:
            if any(text in f"{path}: {problem}" for text in excused):
                named.append(path)
            else:
                self.wrong.append(f"verify: {oracle.shape(path)}: {oracle.shape(problem)}")
        return named

    def _check(self) -> dict[str, Any]:
        """In a child: what the product reads, now and at each ref, and what `verify` finds."""
        read = READ.call(self.world, self.album, "")
        refs: dict[str, dict[str, list[int]]] = {}
        wanted = self.album.digests(*range(N_PHOTOS))
        for name in ("old", *self.facts.refs):
            refs[name] = {}
            for space in Cache.open(self.world.cache, ref=name).spaces():
                there = space.read(wanted)[1]
                numbers = [n for n, ok in enumerate(there.tolist()) if ok]
                refs[name][self.album.names[space.digest]] = numbers
        report = verify(self.world.cache)
        found = [[finding.path, finding.problem] for finding in report.findings]
        return {"read": read, "refs": refs, "verify": found}

    def _check_refs(self, refs: dict[str, dict[str, list[int]]]) -> None:
        pinned = {"old": {(NET, n) for n in (0, 1, 2)}, **self.facts.refs}
        for name, spaces in refs.items():
            rows = {(space, n) for space, numbers in spaces.items() for n in numbers}
            self._lost(f"ref {name}", (pinned[name] & self.facts.must) - rows - self.hurt)
            self._back(f"ref {name}", {n for _, n in rows} & self.facts.never)

    def _lost(self, where: str, rows: set[Row]) -> None:
        if rows:
            self.wrong.append(f"lost: {where}: {_listed(rows)}")

    def _back(self, where: str, numbers: set[int]) -> None:
        if numbers:
            self.wrong.append(f"back: {where}: {', '.join(map(str, sorted(numbers)))}")


def _follow_advice(cache: Path) -> None:
    """What `verify` advises where a process died."""
    shutil.rmtree(cache / "local" / "incoming", ignore_errors=True)
    forget_forgotten(Cache.open(cache))
    compact(Cache.open(cache))


def _done_before(op: Operation, end: End) -> bool:
    """Whether an earlier run, which was killed, has done what a later one refuses to do again."""
    return (
        ("knows no photo id" in end.text and bool(op.forgets))
        or ("has a ref" in end.text and bool(op.ref))
        or ("has no vectors of" in end.text and bool(op.frees))
    )


def _listed(rows: set[Row]) -> str:
    return ", ".join(f"{space} {n}" for space, n in sorted(rows))
