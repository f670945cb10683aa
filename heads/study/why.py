"""Pictures of why on a study's page: what moved the predictions of a few photos of its figures.

    why = explain(results, "out", seen_by=...)     beside Figure 1 and those of the highest log-loss

A few photos of each figure are drawn with the head that dev chose, by folds with that of the round
which had not seen the photo. A picture shows what network and head react to; it is no cause. What
is drawn is kept beside the fits, so that another run of the study draws nothing twice.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from embedcache import disk
from embedcache.errors import EmbedcacheError, HeadError
from embedcache.spec import Spec, canonical_json
from heads.head import Head, Layer, specs_of
from heads.saliency import Seen, picture, score_of, unexplained
from heads.saved import load
from heads.study.gallery import Gallery, Picture, all_galleries
from heads.study.kept import KeptFit
from heads.study.results import Results

ENDS, WORST = 3, 4
"""Photos that are explained: so many first and last ones of Figure 1, and the worst of others."""
_SIDE = 176
_QUALITY = 80
_MAX_BYTES = 4 << 20
SeenBy = Callable[[Sequence[tuple[str, Spec]], Sequence[str]], Iterator[tuple[str, Seen | str]]]
NO_WEIGHTS = "the weights of its network are not here, or are others than those it was fitted on"

NO_HEAD = "its head was changed after it was fitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A photo of a figure as its network saw it, and beside it what moved the score: a JPEG."""

    shown: Picture
    jpeg: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        with Image.open(io.BytesIO(self.jpeg)) as found:
            return found.size


@dataclass(frozen=True, slots=True)
class Why:
    """By the name of a figure: its explained photos, or why there are none.

    off: why there are none at all, "" where some were asked for.
    """

    drawn: Mapping[str, tuple[Explained, ...]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    off: str = ""


def explain(
    results: Results,
    out: str | Path,
    *,
    seen_by: SeenBy,
    version: int,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Why:
    """Draw what moved the predictions of some photos of each figure.

    out: the study's folder, with its fits.
    seen_by: (specs by name, photo ids) -> each id with what the networks saw, or why not; the
        command line hands it in. It is not called where everything is kept.
    version: of how pictures are computed; those of another one are drawn anew.
    say: called with what could not be drawn.  progress: with pictures done and all pictures.
    """
    asked = [(one, _shown(one)) for one in all_galleries(results)]
    n, done = sum(len(pictures) for _, pictures in asked), 0
    drawn: dict[str, tuple[Explained, ...]] = {}
    missing: dict[str, str] = {}
    for gallery, pictures in asked:
        try:
            head = load(Path(out) / "fits" / gallery.fit.key)
            if why := unexplained(head):
                missing[gallery.name] = _without_folders(why, head)
            else:
                found = []
                for one in _explained(gallery, pictures, head, Path(out), seen_by, version):
                    found.append(one)
                    progress(done + len(found), n)
                drawn[gallery.name] = tuple(found)
                if not found:
                    missing[gallery.name] = "none of its photos could be read"
        except EmbedcacheError as error:
            say(f"no pictures of why for {gallery.title}: {error}")
            missing[gallery.name] = NO_HEAD if isinstance(error, HeadError) else NO_WEIGHTS
        done += len(pictures)
    return Why(drawn, missing)


def _shown(gallery: Gallery) -> list[Picture]:
    """The photos of a figure that are explained."""
    first, last = gallery.strips[0].pictures, gallery.strips[-1].pictures
    chosen = [*first[:ENDS], *last[-ENDS:]] if gallery.ranked else first[:WORST]
    return list({one.photo_id: one for one in chosen}.values())


def _explained(
    gallery: Gallery,
    pictures: Sequence[Picture],
    head: Head,
    out: Path,
    seen_by: SeenBy,
    version: int,
) -> Iterator[Explained]:
    """The pictures that are kept or can be drawn; a lost photo has none."""
    fit = gallery.fit
    fold = dict(zip(fit.ids, fit.fold, strict=True))
    place = {one.photo_id: _place(out, fit, one.photo_id, version) for one in pictures}
    kept = {name: _read(path) for name, path in place.items()}
    lacking = [name for name, data in kept.items() if data is None]
    fresh = seen_by(specs_of(head.card), lacking) if lacking else iter(())
    by_id = {one.photo_id: one for one in pictures}
    for name, data in kept.items():
        if data is not None:
            yield Explained(shown=by_id[name], jpeg=data)
    for name, seen in fresh:
        if isinstance(seen, str):
            continue
        pixels, moved = seen
        own = of_round(head, fold[name], fit.folds)
        small = _small(picture(pixels, moved(score_of(own, 0))))
        disk.replace(place[name], small, durable=False)
        yield Explained(shown=by_id[name], jpeg=small)


def of_round(head: Head, number: int, folds: int | None) -> Head:
    """The part of a head of K folds that round `number` fitted; the head itself without folds."""
    members = len(head.layers[0].weight)
    if folds is None or members % folds:
        return head
    each = members // folds
    mine = slice(number * each, (number + 1) * each)
    layers = tuple(Layer(layer.weight[mine], layer.bias[mine]) for layer in head.layers)
    return replace(head, layers=layers)


def _place(out: Path, fit: KeptFit, photo_id: str, version: int) -> Path:
    """Where a picture is kept. The fit's key covers the photo's content and the head."""
    named = canonical_json([fit.key, photo_id, version])
    return out / "fits" / f"why-{hashlib.sha256(named).hexdigest()}.jpg"


def _read(path: Path) -> bytes | None:
    """A kept picture; None where there is none that can be used."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as found:
            found.load()
            return data if max(found.size) <= 8 * _SIDE else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _small(png: bytes) -> bytes:
    """A picture of both halves, each some _SIDE pixels high, without metadata."""
    with Image.open(io.BytesIO(png)) as large:
        size = max(1, round(large.width * _SIDE / large.height)), _SIDE
        small = large.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=_QUALITY, optimize=True)
    return packed.getvalue()


def _without_folders(sentence: str, head: Head) -> str:
    """A sentence with the last part of the path of each backbone only."""
    for name, _ in specs_of(head.card):
        sentence = sentence.replace(name, name.rstrip("/").rpartition("/")[2])
    return sentence
