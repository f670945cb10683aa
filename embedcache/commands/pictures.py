"""What `predict --explain` asks of stage one: the pixels that a network saw, and which moved it."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.wording import counted, plain

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from embedcache.photos.table import Photos
    from embedcache.spec import Spec
    from embedcache.store.cache import Cache

    Score = Callable[[torch.Tensor], torch.Tensor]
    Seen = tuple[NDArray[np.uint8], Callable[[Score], NDArray[np.float32]]]

log = logging.getLogger(__name__)

SHOWN = 5


def seen_by(
    specs: "Sequence[tuple[str, Spec]]",
    table: "Photos",
    cache: "Cache",
    places: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    device: str,
) -> "Iterator[tuple[int, Seen | str]]":
    """The photos at `places` of a table as the networks of some specs see them, one by one.

    specs: whose vectors a head takes side by side, by name.  names: backbones in place of these.
    Yields the place and, of the widest view, the pixels uint8 (h, w, 3) with what gives for a score
    of the vectors how much each pixel moved it, float32 (h, w); or the place and why there is none.
    SpecMismatch where a network is another one here.
    """
    from embedcache.backbones.saliency import saliency, widest
    from embedcache.extraction.inputs import inputs
    from embedcache.extraction.respec import backbones_of

    backbones = backbones_of(specs, cache, names=names, device=device)
    digests, _ = cache.digests_of([table.ids[i] for i in places], scope=table.scope)
    for place, pixels in inputs(table, places, digests, cache, backbones):
        if isinstance(pixels, str):
            yield place, pixels
        else:
            shown = widest({at: backbones[at].preprocessing for at in pixels})
            yield place, (pixels[shown], functools.partial(saliency, backbones, pixels))


def seen_by_id(
    table: "Photos", cache: "Cache", *, device: str
) -> "Callable[[Sequence[tuple[str, Spec]], Sequence[str]], Iterator[tuple[str, Seen | str]]]":
    """`seen_by` for some ids of a table: (specs, ids) -> each id with what the networks see."""
    place_of = {name: place for place, name in enumerate(table.ids)}

    def seen(
        specs: "Sequence[tuple[str, Spec]]", ids: Sequence[str]
    ) -> "Iterator[tuple[str, Seen | str]]":
        places = [place_of[name] for name in ids if name in place_of]
        for place, one in seen_by(specs, table, cache, places, device=device):
            yield table.ids[place], one

    return seen


def version() -> int:
    """Of how pictures are computed."""
    from embedcache.backbones.saliency import VERSION

    return VERSION


def report(n: int, lost: Mapping[str, str], folder: Path) -> None:
    """Say on stderr what was drawn. lost: the photos without a picture, and why."""
    from embedcache.photos.kinds import in_words

    for name, reason in list(lost.items())[:SHOWN]:
        log.warning("no picture of %s: %s", plain(name), in_words(reason))
    log.info("wrote %s to %s", counted(n, "picture"), folder)
    log.info("a picture shows what the head reacts to, not a cause: see README.txt there")
