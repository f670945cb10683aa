"""From which cosine on two photos of a space are near-duplicates, found from known changes.

A sample of the cache's own photos is changed in ways that people change photos, embedded by the
same network and compared with the vectors in the cache. For each change that is to be found, the
threshold is the highest of its cosines that a share of RECALL of all such copies exceeds with
CONFIDENCE, whatever their distribution is: the k-th lowest of n (Wilks 1941), 2nd of 300, and the
lowest where n is too small for that. The lowest over these changes is taken. What is kept are
cosines without ids and in ascending order, so that nothing of one photo can be told from them.
"""

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache import disk
from embedcache.alike.embed import Embedder
from embedcache.alike.linking import block_rows, unit
from embedcache.alike.originals import read_original
from embedcache.errors import EmbedcacheError, InputError
from embedcache.photos import images
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.wording import counted

VERSION = 1
SAMPLE = 300
FEWEST = 20
"""Fewer photos say nothing about a threshold."""
DEFAULT = 0.95
RECALL, CONFIDENCE = 0.99, 0.8
MOST_CHANCE = 0.1
"""With more photos than this above the threshold for each by chance, groups join strangers."""
PAIRS_ROWS = 1024
MAX_KEPT_BYTES = 1 << 20
F32 = NDArray[np.float32]


def _saved(image: Image.Image, quality: int = 75) -> bytes:
    """A JPEG, at Pillow's own quality unless given."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _recompressed(image: Image.Image) -> bytes:
    return _saved(image, quality=60)


def _resized(image: Image.Image) -> bytes:
    width, height = (max(1, round(0.8 * side)) for side in image.size)
    return _saved(image.resize((width, height), Image.Resampling.LANCZOS))


def _cropped(image: Image.Image) -> bytes:
    across, down = (round(0.05 * side) for side in image.size)
    return _saved(image.crop((across, down, image.width - across, image.height - down)))


def _mirrored(image: Image.Image) -> bytes:
    return _saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "quality 60": _recompressed,
    "size 80 %": _resized,
    "crop 5 %": _cropped,
    "mirrored": _mirrored,
}
"""Of an upright RGB photo; each but the first is saved at quality 75. The crop is 5 % of the width
and of the height from each side."""
FOUND = ("quality 60", "size 80 %", "crop 5 %")
"""The changes that the threshold is made for; the others are reported."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of local/alike: by change, the cosines of copies with their photos, ascending.

    wanted: photos that were asked for. n_held: photos in the space. n_lost: copies without a
    vector, such as a face not found.
    """

    version: int
    spec: str
    wanted: int
    n_held: int
    n_photos: int
    n_lost: int
    cosines: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A cosine that makes near-duplicates, and what it misses.

    source: "measured", "given" or "default". why: of a default, what kept it from being measured.
    n_photos: of the sample. recall: by change, the share of copies that the threshold finds.
    unrelated: the share of n_pairs random pairs of the collection above it, its own near-duplicates
    too. n_held: photos with a vector.
    """

    value: float
    source: str
    n_photos: int = 0
    n_lost: int = 0
    recall: Mapping[str, float]
    unrelated: float
    n_pairs: int
    n_held: int = 0
    why: str = ""

    @property
    def chance(self) -> float:
        """How many photos of the collection are above the threshold for a photo, by chance."""
        return self.unrelated * self.n_held

    def document(self) -> dict[str, Json]:
        return {
            "value": self.value,
            "source": self.source,
            "photos": self.n_photos,
            "lost": self.n_lost,
            "recall": dict(self.recall),
            "unrelated": self.unrelated,
            "pairs": self.n_pairs,
            "by_chance": self.chance,
            "why": self.why,
        }

    def __str__(self) -> str:
        how = {
            "measured": f"from copies of {counted(self.n_photos, 'photo')} of this cache",
            "given": "as given",
            "default": f"the default, because {self.why}",
        }[self.source]
        lines = [f"threshold: a cosine of {self.value:.4f} ({how})"]
        if self.recall:
            each = ", ".join(f"{name} {100 * x:.1f} %" for name, x in self.recall.items())
            lines.append(f"  copies that it finds, by change: {each}")
        if self.n_lost:
            lines.append(f"  {counted(self.n_lost, 'copy', 'copies')} had no vector at all")
        if self.n_pairs:
            lines.append(
                f"  random pairs of this collection above it: {100 * self.unrelated:.3g} % of "
                f"{self.n_pairs:,}"
            )
        if self.chance > MOST_CHANCE:
            lines.append(
                f"  this is {self.chance:,.1f} other photos for each: this backbone does not tell "
                "all near-duplicates from other photos. Name a higher `threshold`, or another "
                "backbone"
            )
        return "\n".join(lines)


def threshold_of(
    cache: Cache,
    space: Space,
    *,
    given: float | None = None,
    paths: Callable[[], Mapping[bytes, str]],
    sample: int = SAMPLE,
    again: bool = False,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Threshold:
    """The threshold of a space: as given, as kept, or measured now and kept.

    given: above 0, at most 1; what it misses is said where it was measured before.
    paths: gives files of the cache's photos by content; called where some must be read.
    sample: photos to change, as far as so many can be read.
    again: measure also where a result is kept.
    progress: called with (photos changed and embedded, photos).
    Where the photos cannot be read, where the space was imported, or where there are fewer than
    FEWEST photos, the default with the reason. InputError for a threshold out of range.
    """
    if given is not None and not 0 < given <= 1:
        raise InputError(f"`threshold` is a cosine above 0 and at most 1; got {given}")
    file = cache.path / "local" / "alike" / f"{space.digest}.json"
    kept, why = _read(file, space), ""
    if given is None and (again or kept is None or _outgrown(kept, space, sample)):
        try:
            kept = _measured(cache, space, paths(), sample, device=device, progress=progress)
            _keep(cache, file, kept)
        except _NotMeasured as error:
            why = str(error)
    if given is not None:
        value, source = given, "given"
    elif kept is not None:
        value, source = _value(kept.cosines), "measured"
    else:
        value, source = DEFAULT, "default"
    unrelated, n_pairs = _unrelated(space, value)
    return Threshold(
        value=value,
        source=source,
        n_photos=0 if kept is None else kept.n_photos,
        n_lost=0 if kept is None else kept.n_lost,
        recall={} if kept is None else {k: _share(v, value) for k, v in kept.cosines.items()},
        unrelated=unrelated,
        n_pairs=n_pairs,
        n_held=len(space.digests()),
        why=why if source == "default" else "",
    )


def _outgrown(kept: _Kept, space: Space, sample: int) -> bool:
    """Whether a larger sample is asked for, or can be had since the space has grown."""
    if kept.wanted < sample:
        return True
    return kept.n_photos < sample and len(space.digests()) >= 2 * kept.n_held


class _NotMeasured(Exception):
    """Why a threshold cannot be measured here, as the end of a sentence."""


def _measured(
    cache: Cache,
    space: Space,
    paths: Mapping[bytes, str],
    sample: int,
    *,
    device: str,
    progress: Callable[[int, int], None],
) -> _Kept:
    """Change, embed and compare a sample of the photos."""
    if space.spec.kind == "foreign":
        raise _NotMeasured("these vectors were imported, and no network here makes such")
    contents = [row.tobytes() for row in space.digests()]
    known = [content for content in contents if content in paths]
    if len(known) < FEWEST:
        raise _NotMeasured(
            f"only {len(known):,} of {counted(len(contents), 'photo')} can be found on this "
            f"machine, and it takes {FEWEST}: name their folder or table with `photos`"
        )
    try:
        embedder = Embedder.of(cache, space, device=device)
    except EmbedcacheError as error:
        raise _NotMeasured(f"its network cannot be loaded: {error}") from None
    # A content's digest is as good as a random number. A few may be gone or changed by now.
    some = sorted(known)[: sample + sample // 4]
    cosines: dict[str, list[float]] = {name: [] for name in CHANGES}
    vectors, found = space.read(np.frombuffer(b"".join(some), np.uint8).reshape(-1, 32))
    originals = unit(vectors)
    jobs = [partial(_changed, paths[content], content) for content in some]
    n_photos = n_lost = 0
    for i, copies in embedder.vectors(jobs):
        if not copies or not found[i]:
            continue
        n_photos += 1
        for name, copy in zip(CHANGES, copies, strict=True):
            if isinstance(copy, str):
                n_lost += 1
            else:
                cosines[name].append(float(unit(copy[None].copy())[0] @ originals[i]))
        progress(n_photos, min(sample, len(some)))
        if n_photos == sample:
            break
    if min(len(cosines[name]) for name in FOUND) < FEWEST:
        raise _NotMeasured(
            f"only {n_photos:,} of its photos can be read on this machine, and it takes {FEWEST}"
        )
    return _Kept(
        version=VERSION,
        spec=space.digest,
        wanted=sample,
        n_held=len(contents),
        n_photos=n_photos,
        n_lost=n_lost,
        cosines={name: tuple(round(x, 5) for x in sorted(cosines[name])) for name in CHANGES},
    )


def _changed(path: str, content: bytes) -> list[bytes]:
    """The changed copies of a photo; none where its file is gone or another one by now."""
    data = read_original(path, content)
    if data is None:
        return []
    try:
        image = images.decode(data)
    except images.DecodeError:
        return []
    return [change(image) for change in CHANGES.values()]


def _value(cosines: Mapping[str, Sequence[float]]) -> float:
    """The highest threshold that finds the changes of FOUND as the module's text says."""
    lowest = min(cosines[name][_rank(len(cosines[name])) - 1] for name in FOUND)
    return max(0.01, math.floor(lowest * 10_000) / 10_000)


def _rank(n: int) -> int:
    """The k of the module's text for n cosines."""
    from scipy.stats import binom

    k = np.arange(1, n + 1)
    sure = np.flatnonzero(binom.sf(k - 1, n, 1 - RECALL) >= CONFIDENCE)
    return int(k[sure[-1]]) if len(sure) else 1


def _share(cosines: Sequence[float], value: float) -> float:
    """The share of cosines at or above a value; 0 of none."""
    return sum(x >= value for x in cosines) / max(1, len(cosines))


def _unrelated(space: Space, value: float) -> tuple[float, int]:
    """(the share of random pairs of distinct photos at or above a value, the number of pairs)."""
    digests = space.digests()  # ascending: neighbours have nothing in common
    n = min(len(digests), PAIRS_ROWS, max(32, block_rows(space.dim)))
    at = np.unique(np.linspace(0, max(0, len(digests) - 1), n).astype(np.int64))
    rows, found = space.read(digests[at])
    rows = unit(rows[found])
    if len(rows) < 2:
        return 0.0, 0
    above = np.triu(rows @ rows.T >= value, 1)
    n_pairs = len(rows) * (len(rows) - 1) // 2
    return float(above.sum()) / n_pairs, n_pairs


def _read(file: Path, space: Space) -> _Kept | None:
    """What was kept of this space by this version, None where there is nothing that can be used."""
    try:
        raw = disk.read_kept(file, limit=MAX_KEPT_BYTES) or b""
        kept = msgspec.json.decode(raw, type=_Kept)
    except msgspec.DecodeError:
        return None
    usable = set(kept.cosines) == set(CHANGES) and all(kept.cosines[name] for name in FOUND)
    return kept if usable and (kept.version, kept.spec) == (VERSION, space.digest) else None


def _keep(cache: Cache, file: Path, kept: _Kept) -> None:
    """Write it down; a cache that cannot be written to measures again."""
    if not cache.writable:
        return
    with contextlib.suppress(OSError):
        disk.make_folder(file.parent, below=cache.path)
        disk.replace(file, msgspec.json.encode(kept))
