"""What one run leaves out of a shared copy, and why."""

from collections.abc import Iterable
from pathlib import Path

from embedcache.errors import EmbedcacheError, RemoteError
from embedcache.remotes.remote import Remote
from embedcache.store.manifest import is_segment_id


class Refusals:
    """Collects what was refused; nothing is raised, so that everything else still moves.

    notes: sentences about parts that this member may not see.
    """

    def __init__(self, remote: Remote) -> None:
        self.notes: list[str] = []
        self._remote = remote
        self._problems: dict[str, RemoteError] = {}

    @property
    def problems(self) -> list[RemoteError]:
        """One error for each segment or object that was refused, in order."""
        return list(self._problems.values())

    @property
    def has_segments(self) -> bool:
        """Whether a segment was refused."""
        return any(map(is_segment_id, self._problems))

    def of(self, key: str) -> RemoteError | None:
        """Why a segment or object was refused; None where it was not."""
        return self._problems.get(key)

    def segment(self, segment: str, error: Exception | str) -> None:
        """Refuse a segment."""
        self._add(segment, f"segment {segment} at {self._remote.name} is left out", error)

    def object(self, key: str, error: Exception | str) -> None:
        """Refuse an object by its key."""
        self._add(key, f"{key} of {self._remote.name} is left out", error)

    def forgive(self, segments: Iterable[str]) -> None:
        """Take back refusals of segments that were removed meanwhile, which is no damage."""
        for segment in segments:
            self._problems.pop(segment, None)

    def note_locked(self, root: str) -> None:
        """Note that a part is left out because this member may not read it."""
        self.notes.append(f"you have no right to read {root}/ of {self._remote.name}: left out")

    def _add(self, key: str, asked: str, error: Exception | str) -> None:
        found = error.found if isinstance(error, EmbedcacheError) else str(error)
        problem = RemoteError(found, asked=asked, advice=advice(self._remote))
        self._problems.setdefault(key, problem)


def advice(remote: Remote) -> str:
    """What to do about bytes at a remote that are not what was written."""
    url = remote.name
    if "://" not in url:  # `embedcache verify` takes a plain path for a cache
        url = f"file://{Path(url).absolute()}"
    return (
        "Rerun the command; if it fails again, the shared copy is damaged: "
        f"'embedcache verify {url}' lists the damage"
    )
