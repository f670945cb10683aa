"""Ids that meet: a table that says `u1` and a folder whose photo is `2024/u1.jpg`.

A folder's photos are called by their relative paths. Other tables may call them by path, by file
name, or by either without its suffix. An id that is a photo's own always means that photo; the
others meet by the rule that joins most of them, if it joins enough, and each to one photo only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.photos.kinds import SUFFIXES

ENOUGH = 0.5
"""The share of the smaller side that a rule must join to be used."""
MOST = 0.5
"""A rule that joins fewer than 1 / MOST times the ids that meet as they are leaves these alone."""


@dataclass(frozen=True, slots=True)
class Matches:
    """How n asked ids meet m held ones.

    rule: of those that do not meet as they are, in words, such as "file name".
    at: int64 (n,), positions in the held ids, -1 for none.
    by_rule: bool (n,), met by the rule.  ambiguous: bool (n,), the rule joins the id to several
        photos, or several ids share one name.
    """

    rule: str
    at: NDArray[np.int64]
    by_rule: NDArray[np.bool_]
    ambiguous: NDArray[np.bool_]

    @property
    def n(self) -> int:
        """Ids that meet a photo."""
        return int((self.at >= 0).sum())

    @property
    def n_ambiguous(self) -> int:
        return int(self.ambiguous.sum())

    def sentence(self, asked: Sequence[str], held: Sequence[str]) -> str:
        """What the rule joined, with one pair, as a message shows it."""
        n = int(self.by_rule.sum())
        if not n:
            return ""
        first = int(np.flatnonzero(self.by_rule)[0])
        pair = f"{asked[first]!r} is {held[int(self.at[first])]!r}"
        whole = f"({n:,} of {len(asked):,} rows)"
        return f"ids are joined by {self.rule}: {pair} {whole}"


def match_ids(
    asked: Sequence[str], held: Sequence[str], contents: Sequence[bytes], scopes: Sequence[str]
) -> Matches | None:
    """How n ids meet the m ids of photos: as they are, the others by the rule that joins most of
    them. None where nothing meets well enough.

    Where most ids meet as they are, a rule joins the others only to places in which none does: in
    one folder, `2023/u1.jpg` is not the photo `2024/u1.jpg`.
    contents: (m,), equal for photos with the same bytes, which no rule has to separate.
    scopes: (m,), where each held id comes from; only places with a match count as a side.
    """
    place = dict(zip(held, range(len(held)), strict=True))
    exact = np.array([place.get(name, -1) for name in asked], np.int64)
    met = exact >= 0
    rest = Matches("", exact, np.zeros_like(met), np.zeros_like(met))
    if met.all():
        return rest
    found = None
    if met.sum() < MOST * len(asked):
        found = _by_rule(asked, held, contents, scopes)
    if found is None or MOST * found.n < met.sum():
        lost = np.flatnonzero(~met).tolist()
        settled = {scopes[i] for i in exact[met].tolist()}
        others = [i for i, scope in enumerate(scopes) if scope not in settled]
        ours = [[values[i] for i in others] for values in (held, contents, scopes)]
        part = _by_rule([asked[i] for i in lost], *ours)  # type: ignore[arg-type]
        if part is None:
            return rest if met.any() else None
        at, ambiguous = np.full(len(asked), -1, np.int64), np.zeros_like(met)
        at[lost] = [others[i] if i >= 0 else -1 for i in part.at.tolist()]
        ambiguous[lost] = part.ambiguous
        found = Matches(part.rule, at, at >= 0, ambiguous)
    at = np.where(met, exact, found.at)
    return Matches(found.rule, at, ~met & (at >= 0), found.ambiguous & ~met)


def _by_rule(
    asked: Sequence[str], held: Sequence[str], contents: Sequence[bytes], scopes: Sequence[str]
) -> Matches | None:
    """The rule under which most ids meet; None where none is good enough."""
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
    at = np.array([-1 if name in several else place.get(name, -1) for name in keys], np.int64)
    ambiguous = np.array([name in several and name in place for name in keys], np.bool_)
    return Matches(rule, at, at >= 0, ambiguous)
