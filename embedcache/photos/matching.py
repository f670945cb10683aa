"""Ids that meet: a table that says `u1` and a folder whose photo is `2024/u1.jpg`.

A folder's photos are called by their relative paths. Other tables may call them by path, by file
name, or by either without its suffix. Where the ids themselves do not meet, the rule under which
most of them do is used, if it joins enough of them and each to one photo only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.photos.kinds import SUFFIXES

ENOUGH = 0.5
"""The share of the smaller side that a rule must join to be used."""


@dataclass(frozen=True, slots=True)
class Matches:
    """How n asked ids meet m held ones.

    rule: in words, such as "file name".  at: int64 (n,), positions in the held ids, -1 for none.
    n_ambiguous: asked ids that the rule joins to several photos, or that share one name.
    """

    rule: str
    at: NDArray[np.int64]
    n_ambiguous: int

    @property
    def n(self) -> int:
        """Ids that meet a photo."""
        return int((self.at >= 0).sum())

    def example(self, asked: Sequence[str], held: Sequence[str]) -> str:
        """One pair, as a message shows it."""
        first = int(np.flatnonzero(self.at >= 0)[0])
        return f"{asked[first]!r} is {held[int(self.at[first])]!r}"


def match_ids(
    asked: Sequence[str], held: Sequence[str], contents: Sequence[bytes], scopes: Sequence[str]
) -> Matches | None:
    """The rule under which most of n ids meet the m ids of photos; None where none is good enough.

    contents: (m,), equal for photos with the same bytes, which no rule has to separate.
    scopes: (m,), where each held id comes from; only places with a match count as a side.
    """
    found: list[Matches] = []
    for rule, key in RULES.items():
        found.append(_match(rule, key, asked, held, contents))
        if found[-1].n == min(len(asked), len(held)):
            break
    best = max(found, key=lambda matches: matches.n)
    if not best.n:
        return None
    sizes = Counter(scopes)
    n_held = sum(sizes[scope] for scope in {scopes[i] for i in best.at.tolist() if i >= 0})
    return best if best.n >= ENOUGH * min(len(asked), n_held) else None


def _path(name: str) -> str:
    """A path with forward slashes and nothing in front."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def _without_suffix(name: str) -> str:
    """A name without the suffix of a photo; any other dot belongs to the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in SUFFIXES else name


def _file_name(name: str) -> str:
    return _path(name).rpartition("/")[2]


RULES: dict[str, Callable[[str], str]] = {
    "path": _path,
    "path without suffix": lambda name: _without_suffix(_path(name)),
    "file name": _file_name,
    "file name without suffix": lambda name: _without_suffix(_file_name(name)),
}


def _match(
    rule: str,
    key: Callable[[str], str],
    asked: Sequence[str],
    held: Sequence[str],
    contents: Sequence[bytes],
) -> Matches:
    place: dict[str, int] = {}
    several = set()
    for i, name in enumerate(held):
        if contents[place.setdefault(key(name), i)] != contents[i]:
            several.add(key(name))
    keys = [key(name) for name in asked]
    times = Counter(keys)
    several |= {name for name, n in times.items() if n > 1}
    at = [-1 if name in several else place.get(name, -1) for name in keys]
    n_ambiguous = sum(name in several and name in place for name in keys)
    return Matches(rule, np.array(at, np.int64), n_ambiguous)
