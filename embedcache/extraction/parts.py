"""One of N parts of the photos, for a process that does its part and knows nothing of the others.

    WorkPart.parse("3/8")       the third of eight
    WorkPart.parse("auto")      as Slurm, Kubernetes or two plain variables say

A photo belongs to a part by a hash of its id, which for a folder is the path inside it: every host
comes to the same answer without reading a file, and a new photo moves no other
(docs/decisions/082).
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from embedcache.errors import InputError
from embedcache.photos.table import Photos
from embedcache.texts import some_of

MAX_PARTS = 100_000
_PLAIN = ("EMBEDCACHE_PART", "EMBEDCACHE_PARTS")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
_KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


@dataclass(frozen=True, slots=True)
class WorkPart:
    """Part `number` of `total`, counted from 1."""

    number: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total <= MAX_PARTS:
            raise InputError(
                f"part {self.number} of {self.total} does not exist",
                advice=f"Give I/N with 1 <= I <= N <= {MAX_PARTS:,}",
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `I/N`, or with `auto` the environment of a job; InputError for anything else."""
        if text == "auto":
            return cls._of_job(environ)
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None:
            raise InputError(f"no such part: {text!r}", advice="Give I/N, such as 3/8, or auto")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _of_job(cls, environ: Mapping[str, str]) -> Self:
        for names in (_PLAIN, _SLURM, _KUBERNETES):
            given = [name for name in names if environ.get(name)]
            if given:
                break
        else:
            raise InputError(
                "`part='auto'` found no job: none of "
                f"{', '.join((*_PLAIN, *_SLURM, *_KUBERNETES))} is set",
                advice="Set EMBEDCACHE_PART and EMBEDCACHE_PARTS, or give `part=I/N`",
            )
        if len(given) < 2:
            missing = next(name for name in names if name not in given)
            raise InputError(f"`part='auto'` found {given[0]}, but {missing} is not set")
        index, total = (_number(environ, name) for name in names)
        try:
            if names == _SLURM:
                return cls._of_slurm(environ, index, total)
            return cls(index + 1 if names == _KUBERNETES else index, total)
        except InputError as error:
            told = " and ".join(f"{name}={environ[name]}" for name in names)
            if told in str(error) or "array" in error.fact:
                raise
            raise InputError(f"`part='auto'`, from {told}: {error.fact}") from None

    @classmethod
    def _of_slurm(cls, environ: Mapping[str, str], index: int, total: int) -> Self:
        """An array may begin anywhere and have a step; one with gaps cannot be numbered."""
        first = _number(environ, "SLURM_ARRAY_TASK_MIN", 0 if total > 1 else index)
        last = _number(environ, "SLURM_ARRAY_TASK_MAX", first + total - 1)
        step = (last - first) // (total - 1) if total > 1 else 1
        asked_step = _number(environ, "SLURM_ARRAY_TASK_STEP", step)
        if (
            step < 1
            or asked_step != step
            or first + step * (total - 1) != last
            or (index - first) % step
        ):
            raise InputError(
                f"`part='auto'`: the {total} tasks of this Slurm array, {first} to {last}, are not "
                "evenly spaced",
                advice=f"Use an array such as 0-{total - 1}",
            )
        return cls((index - first) // step + 1, total)

    def of(self, photos: Photos) -> Photos:
        """The photos that belong to this part."""
        if self.total == 1:
            return photos
        held = np.fromiter(map(self._holds, photos.ids), np.bool_, len(photos))
        rows = np.flatnonzero(held)
        return replace(photos, ids=some_of(photos.ids, rows), paths=some_of(photos.paths, rows))

    def _holds(self, photo_id: str) -> bool:
        digest = hashlib.sha256(photo_id.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number - 1


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name) or (None if default is None else str(default))
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text):
        raise InputError(f"`part='auto'`: {name} is {text!r}, not a number")
    return int(text)
