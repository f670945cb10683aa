"""Labels joined to vectors by photo id: the rows that heads are fitted on.

    dataset = load(Cache.open("faces.cache"), "inception_v3.tf_in1k", "labels.csv",
                   target="like_ratio", weight="swipes")

A row is one labelled photo with a vector. Photos without one are left out and counted by reason;
what would make a figure wrong is an error: a missing label, a group on two sides, two labels for
one id.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.spec import Json
from embedcache.store.side_by_side import SideBySide
from heads.dataset import split
from heads.dataset.targets import Floats, Task

BLOCK_ROWS = 1024  # read at a time


class Vectors(Protocol):
    """Float32 rows that are read on demand; an ndarray is one, and so is `CacheRows`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class OriginPart:
    """One of several spaces whose vectors stand side by side: its name, spec digest and spec."""

    backbone: str
    spec_digest: str
    spec: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a dataset came from, for the cards of the heads fitted on it.

    backbone: its name; of several all, with " + " between.
    spec: the spec document of the vectors, None for vectors handed in as an array.
    spec_digest: its digest. Of several backbones spec is None, spec_digest is their digests with
        spaces between, and `together` has each.
    labels, split: sha256 of the label file and of each row's side. cache: the folder's name only.
    dropped: rows left out, by reason.
    """

    backbone: str = ""
    spec: dict[str, Json] | None = None
    spec_digest: str = ""
    together: tuple[OriginPart, ...] = ()
    cache: str = ""
    ref: str | None = None
    scope: str | None = None
    subset_name: str = "ALL"
    labels_name: str = ""
    labels: str = ""
    split: str = ""
    split_rule: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one side. vectors (n, d) read on demand; targets (n, k); weights (n,) or None.

    order: the n places in the order of the cache's files, in which reading is fastest.
    """

    vectors: Vectors
    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    targets: Floats
    weights: Floats | None
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32]:
        """The vectors at some places, or all, float32 (places, d)."""
        return self.vectors[self.rows[places]]

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All rows, BLOCK_ROWS at a time: their places in this part, and their vectors."""
        for start in range(0, len(self), BLOCK_ROWS):
            places = self.order[start : start + BLOCK_ROWS]
            yield places, self.read(places)

    @property
    def share(self) -> Floats:
        """The weights (n,) as shares of one; equal where all are zero or there are none."""
        if self.weights is None or not self.weights.any():
            return np.full(len(self), 1 / len(self))
        return np.asarray(self.weights / self.weights.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """n labelled vectors, each row on one side.

    vectors: float32 (n, d). widths: floats of each backbone whose vectors stand in them side by
        side, () for one backbone.
    targets: float64 (n,), or (n, k) for several regression targets at once; 0 and 1 for a binary
        task, class numbers for a multiclass one.
    weights: float64 (n,), non-negative, or None. classes: what the numbers stand for, in order.
    groups: int64 (n,), equal for rows that stay on one side. subset: uint8 (n,), see `split`.
    counts: whether targets are ratios and the weights the counts they come from.
    shares: whether targets lie between 0 and 1 by what they are: two classes, or ratios. Found from
        the whole label table, so that it does not depend on which rows stand where.
    by: per named column, the value of each row (for errors by group).
    notes: what was decided while the table was read, in sentences, such as how ids were joined.
    """

    ids: tuple[str, ...]
    vectors: Vectors
    targets: Floats
    weights: Floats | None
    groups: NDArray[np.int64]
    subset: NDArray[np.uint8]
    task: Task
    widths: tuple[int, ...] = ()
    target: str
    weight: str | None = None
    classes: tuple[str, ...] = ()
    counts: bool = False
    shares: bool = False
    by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    def __repr__(self) -> str:
        return f"<Dataset: {'; '.join(f'{name} {said}' for name, said in self._about())}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = (
            f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>"
            for name, said in (*self._about(), *(("note", note) for note in self.notes))
        )
        return f"<table>{''.join(rows)}</table>"

    def _about(self) -> list[tuple[str, str]]:
        """The dataset in few words, line by line."""
        source = self.provenance
        found = [("photos", f"{len(self.ids):,}"), ("vectors", f"{self.dim:,} floats")]
        if source.backbone:
            found[-1] = ("vectors", f"{self.dim:,} floats from {source.backbone}")
        found.append(("target", f"{self.target} ({self.task})"))
        if self.classes:
            counts = self.class_counts.items()
            found.append(("classes", ", ".join(f"{name} ({n:,})" for name, n in counts)))
        if self.weight:
            found.append(("weight", self.weight))
        found.append(("split", ", ".join(f"{n:,} {side}" for side, n in self.n.items())))
        if source.dropped:
            reasons = sorted(source.dropped.items())
            found.append(("left out", ", ".join(f"{n:,} {why}" for why, n in reasons)))
        return found

    @property
    def dim(self) -> int:
        """Floats per vector."""
        return int(self.vectors.shape[1])

    @property
    def target_names(self) -> tuple[str, ...]:
        """The name of each target column."""
        return tuple(self.target.split(",")) if self.targets.ndim == 2 else (self.target,)

    @property
    def n(self) -> dict[str, int]:
        """Rows per side."""
        return {name: int((self.subset == i).sum()) for i, name in enumerate(split.SUBSETS)}

    def folds(self, count: int, *, seed: int) -> NDArray[np.int64]:
        """The fold of each row (n,), see `split.folds`; each gets its share of every class."""
        strata = self.targets.astype(np.int64) if self.classes else None
        return split.folds(self.groups, self.ids, count, seed=seed, strata=strata)

    def fold(self, number: int, folds: NDArray[np.int64], count: int) -> "Dataset":
        """The dataset of one round of K-fold: its fold tests, the next chooses, the others train.

        folds (n,): the fold of each row, see `split.folds`.
        """
        subset = np.full(len(folds), split.TRAIN, np.uint8)
        subset[folds == number] = split.TEST
        subset[folds == (number + 1) % count] = split.DEV
        return replace(self, subset=subset)

    @property
    def class_counts(self) -> dict[str, int]:
        """Rows per class, in the order of `classes`; empty for a regression."""
        return {name: int((self.targets == i).sum()) for i, name in enumerate(self.classes)}

    def part(self, name: str) -> Part:
        """The rows of "train", "dev" or "test"."""
        rows = np.flatnonzero(self.subset == split.SUBSETS.index(name))
        targets = self.targets[rows]
        order = np.arange(len(rows))
        if isinstance(self.vectors, CacheRows):
            order = np.argsort(self.vectors.location[rows], kind="stable")
        return Part(
            vectors=self.vectors,
            rows=rows,
            order=order,
            targets=targets if targets.ndim == 2 else targets[:, None],
            weights=None if self.weights is None else self.weights[rows],
            groups=self.groups[rows],
        )


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Vectors left in the cache, read when rows are asked for.

    location: int64 (n,), sorts the rows as they lie on disk.
    """

    space: SideBySide
    digests: NDArray[np.uint8]
    location: NDArray[np.int64]

    @classmethod
    def of(cls, space: SideBySide, digests: NDArray[np.uint8]) -> "CacheRows":
        """The rows of (n, 32) digests, all of which the space holds; of several the first orders
        them."""
        _, table = space.spaces[0].row_table()
        at = table.find(digests)
        return cls(space, digests, (table.segment[at].astype(np.int64) << 40) + table.row[at])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return len(self.digests), int(self.space.dim)

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.space.read(self.digests[rows])[0]
        return vectors
