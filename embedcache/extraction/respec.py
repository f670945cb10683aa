"""The backbones that give vectors of exactly some specs: a fitted head's, or a cache's own."""

from collections.abc import Iterable, Sequence

from embedcache.backbones.loading import Backbone, Decode
from embedcache.errors import SpecMismatch
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.networks import load_all
from embedcache.spec import Spec, split_layers
from embedcache.store.cache import Cache


def backbones_of(
    wanted: Sequence[tuple[str, Spec]],
    cache: Cache,
    *,
    names: Sequence[str] | None = None,
    device: str = "auto",
    of: str = "this head was fitted on",
    advice: str = "Name the backbone that the head was fitted on with `backbone`",
) -> list[Backbone]:
    """The backbones that give vectors of exactly these specs, in their order.

    wanted: each spec with the name by which it was recorded. A spec says the precision and the
        decoding; the name says where the weights are, unless `cache` knows that of this machine.
    names: backbones to use in place of these names, in any order.
    of, advice: whose specs they are, and what helps, in the words of an error.
    Where a backbone cannot be loaded, one whose vectors the cache has stands in its place, which
        can be asked for no vector (see `networks.load_all`).
    SpecMismatch where a backbone as it is loaded here gives other vectors.
    """
    places = cache.places()
    by_options: dict[tuple[str, Decode, str], list[tuple[str, Spec]]] = {}
    for name, spec in wanted:
        options = spec.precision, _decode(spec), _detector(spec)
        by_options.setdefault(options, []).append((name, spec))
    found: dict[str, Backbone] = {}
    for (precision, decode, detector), members in by_options.items():
        own = [places.get(spec.digest) or _plain(name, spec) for name, spec in members]
        loaded = load_all(
            list(names) if names else own,
            faces=FaceFinder(cache, device, detector),
            memo=cache.local / "specs.json" if cache.writable else None,
            device=device,
            precision=precision,
            decode=decode,
            cache=cache,
        )
        found |= {one.spec.digest: one for one in loaded}
    for name, spec in wanted:
        if spec.digest not in found:
            raise _mismatch(name, spec, found.values(), of=of, advice=advice)
    return [found[spec.digest] for _, spec in wanted]


def _decode(spec: Spec) -> Decode:
    assert spec.preprocessing is not None  # computed specs have one
    return "reduced" if spec.preprocessing.decode.endswith("reduced") else "full"


def _detector(spec: Spec) -> str:
    """The name of the detector of a spec's faces; of MTCNN where it has none."""
    from embedcache.faces import named

    return named.one_of([] if spec.face is None else [spec.face.detector])


def _plain(name: str, spec: Spec) -> str:
    """A name without the part of the digest by which it was told from another of its name."""
    body, marks = split_layers(name)
    marked = len(marks) == 1 and len(marks[0]) >= 4 and spec.digest.startswith(marks[0])
    return body if marked else name


def _mismatch(
    name: str, spec: Spec, loaded: Iterable[Backbone], *, of: str, advice: str
) -> SpecMismatch:
    """What the nearest of the loaded backbones has in other ways."""
    nearest = min(loaded, key=lambda one: len(spec.difference(one.spec)))
    return SpecMismatch(
        f"{of} {_plain(name, spec)}#{spec.digest[:8]}, and {nearest.name} gives other vectors "
        f"here; different (there, here): {'; '.join(spec.difference(nearest.spec))}. No photo was "
        "embedded",
        advice=advice,
    )
