"""Remotes for tests: a folder, a store in memory, a real S3 protocol server, and one that fails."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from embedcache.remotes.files import FilesRemote
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.objects import ObjectRemote
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import Blocks, ListedObject, Ours, Remote, Unreachable


def folder(path: Path, *, staging: str = "test") -> Remote:
    return FilesRemote(LocalFiles(path), str(path), staging=staging)


def memory() -> Remote:
    from obstore.store import MemoryStore

    return ObjectRemote(MemoryStore(), "memory://team")


class Held:
    """A remote in a dictionary: fast, and any byte can be changed."""

    def __init__(self) -> None:
        self.name = "held://team"
        self.objects: dict[str, bytes] = {}

    def list(self, prefix: str) -> Iterator[ListedObject]:
        for key, raw in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ListedObject(key, len(raw), "")

    def top(self) -> Sequence[str]:
        return sorted({key.split("/")[0] for key in self.objects})

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        return self.list(f"{segment}/")

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if key not in self.objects:
            raise FileNotFoundError(key)
        raw = self.objects[key][start:]
        yield raw if length is None else raw[:length]

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        self.objects[key] = b"".join(blocks())

    def create(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(key, data) is data

    def create_once(self, key: str, data: bytes) -> bool:
        return self.create(key, data)

    def leftovers(self, folder: str) -> Sequence[str]:
        return ()

    def idle_seconds(self, key: str) -> float | None:
        return None

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        self.objects.pop(key, None)


class Flaky:
    """A remote whose requests fail when `fails(number)` says so: before, amid or after the work."""

    def __init__(self, remote: Remote, fails: Callable[[int], str]) -> None:
        self.name = remote.name
        self.n_requests = 0
        self.n_bytes = 0
        self._remote = remote
        self._fails = fails

    def _begin(self) -> str:
        self.n_requests += 1
        how = self._fails(self.n_requests)
        if how == "before":
            raise Unreachable(f"{self.name}: 503 Slow Down")
        return how

    def _end(self, how: str) -> None:
        if how:
            raise Unreachable(f"{self.name}: connection reset")

    def list(self, prefix: str) -> Iterator[ListedObject]:
        how = self._begin()
        yield from self._remote.list(prefix)
        self._end(how)

    def top(self) -> Sequence[str]:
        return self._remote.top()

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        how = self._begin()
        yield from self._remote.unfinished(segment)
        self._end(how)

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        how = self._begin()
        for block in self._remote.blocks(key, start=start, length=length):
            self.n_bytes += len(block)
            if how == "amid":
                yield bytes(block)[: len(block) // 2]
                break
            yield block
        self._end(how)

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        how = self._begin()
        if how != "amid":
            self.n_bytes += size
            self._remote.write(key, blocks, size=size)
        self._end(how)

    def create(self, key: str, data: bytes) -> bool:
        how = self._begin()
        made = False
        if how != "amid":
            self.n_bytes += len(data)
            made = self._remote.create(key, data)
        self._end(how)
        return made

    def create_once(self, key: str, data: bytes) -> bool:
        how = self._begin()
        made = self._remote.create_once(key, data) if how != "amid" else False
        self._end(how)
        return made

    def leftovers(self, folder: str) -> Sequence[str]:
        return self._remote.leftovers(folder)

    def idle_seconds(self, key: str) -> float | None:
        return self._remote.idle_seconds(key)

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        how = self._begin()
        self._remote.delete(key, ours=ours)
        self._end(how)


def once(k: int, how: str) -> Callable[[int], str]:
    """Fails at the k-th request."""
    return lambda n: how if n == k else ""


def since(k: int, how: str) -> Callable[[int], str]:
    """Fails at the k-th request and at all after it."""
    return lambda n: how if n >= k else ""


def counted(remote: Remote) -> Flaky:
    """A remote that never fails and counts what goes through it."""
    return Flaky(remote, lambda n: "")


def impatient(remote: Remote) -> Remote:
    """Patient, without the pauses."""
    return Patient(remote, sleep=lambda seconds: None)


class Meanwhile(Flaky):
    """Runs `deed` once, before the first request whose method and key `when` accepts."""

    def __init__(
        self, remote: Remote, when: Callable[[str, str], bool], deed: Callable[[], object]
    ) -> None:
        super().__init__(remote, lambda n: "")
        self._when = when
        self._deed: Callable[[], object] | None = deed

    @property
    def happened(self) -> bool:
        return self._deed is None

    def _at(self, method: str, key: str) -> None:
        if self._deed is not None and self._when(method, key):
            deed, self._deed = self._deed, None
            deed()

    def list(self, prefix: str) -> Iterator[ListedObject]:
        self._at("list", prefix)
        yield from super().list(prefix)

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._at("blocks", key)
        yield from super().blocks(key, start=start, length=length)

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        self._at("write", key)
        super().write(key, blocks, size=size)

    def create(self, key: str, data: bytes) -> bool:
        self._at("create", key)
        return super().create(key, data)

    def create_once(self, key: str, data: bytes) -> bool:
        self._at("create_once", key)
        return super().create_once(key, data)

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        self._at("delete", key)
        super().delete(key, ours=ours)


class Stale(Flaky):
    """A remote whose listings are as old as its first ones."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote, lambda n: "")
        self._lists: dict[str, list[ListedObject]] = {}

    def list(self, prefix: str) -> Iterator[ListedObject]:
        if prefix not in self._lists:
            self._lists[prefix] = [*super().list(prefix)]
        return iter(self._lists[prefix])


class Unconditional(Held):
    """A store that ignores the condition of a conditional write, as some do."""

    def create(self, key: str, data: bytes) -> bool:
        self.objects[key] = data
        return True

    create_once = create
