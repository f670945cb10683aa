"""What `predict --explain` asks of stage one: the pixels that a network saw, and which moved it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.errors import InputError
from embedcache.wording import counted, plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedcache.photos.table import Photos
    from embedcache.store.cache import Cache

log = logging.getLogger(__name__)

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """photos: (place in the table, uint8 (h, w, 3) as the network saw it, or why not), one by one.

    saliency_of: see `embedcache.backbones.saliency`, for this network.
    """

    photos: "Iterator[tuple[int, NDArray[np.uint8] | str]]"
    saliency_of: Callable[..., Any]


def seen_by(
    card: Mapping[str, Any],
    table: "Photos",
    cache: "Cache",
    places: Sequence[int],
    *,
    place: str,
    device: str,
) -> Seen:
    """The photos at `places` of a table as the network of a head's card saw them.

    place: the network's name. InputError where that is another network than the card's.
    """
    from embedcache.backbones import loading
    from embedcache.backbones.saliency import saliency
    from embedcache.extraction.inputs import inputs

    spec = card["spec"]
    backbone = loading.load(
        place,
        device=device,
        precision=spec["precision"],
        decode="reduced" if spec["preprocessing"]["decode"].endswith("reduced") else "full",
    )
    if backbone.spec.digest != card["spec_digest"]:
        raise InputError(f"{place} is another network than the one that the head was fitted on")
    digests, _ = cache.digests_of([table.ids[i] for i in places], scope=table.scope)
    network, given = backbone.open(), backbone.preprocessing
    return Seen(
        inputs(table, places, digests, cache, backbone=backbone),
        lambda pixels, score: saliency(network, given, pixels, score),
    )


def report(n: int, lost: Mapping[str, str], folder: Path) -> None:
    """Say on stderr what was drawn. lost: the photos without a picture, and why."""
    from embedcache.photos.kinds import in_words

    for name, reason in list(lost.items())[:SHOWN]:
        log.warning("no picture of %s: %s", plain(name), in_words(reason))
    log.info("wrote %s to %s", counted(n, "picture"), folder)
    log.info("a picture shows what the head reacts to, not a cause: see README.txt there")
