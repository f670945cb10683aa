"""The networks of a run: loaded by their names, and opened where they have something to embed."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.backbones.forward import Network
from embedcache.backbones.loading import Backbone, Decode, leaders_of, load_several
from embedcache.backbones.names import Name
from embedcache.errors import NoSuchSpace, WeightsError
from embedcache.extraction.engine import Engine
from embedcache.extraction.face_finder import FaceFinder, as_sequence
from embedcache.extraction.pace import PaceFinder
from embedcache.extraction.pixels import is_pixels, pixel_backbones
from embedcache.extraction.plan import Plan
from embedcache.extraction.process import note_networks, without_collection
from embedcache.faces.named import name_of
from embedcache.spec import split_layers
from embedcache.store.cache import Cache


def load_all(
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    faces: FaceFinder,
    memo: Path | None = None,
    device: str,
    precision: str,
    decode: Decode,
    cache: Cache | None = None,
    keep_pixels: int | None = None,
) -> list[Backbone]:
    """The backbones of a run, loaded, each spec once; last those whose rows are pixels.

    cache: what it has vectors of may lack its weights here, as in a colleague's cache: photos that
        all have a vector need none.
    keep_pixels: as `extract` has it.
    """
    asked = as_sequence(backbone)
    names = [one for one in asked if isinstance(one, str)]
    options: dict[str, Any] = {"device": device, "precision": precision, "decode": decode}
    options |= {"detector": faces.digest, "detector_name": faces.name, "memo": memo}
    with without_collection():
        try:
            named = load_several(names, **options)
        except WeightsError as error:
            if cache is None or len(names) < len(asked):
                raise
            named = _held(names, cache, error, **options)
    found = named if len(names) == len(asked) else _in_order(asked, named)
    if keep_pixels is not None:
        found = [*found, *pixel_backbones(found, keep_pixels)]
    return list({b.spec.digest: b for b in found}.values())


def _held(
    names: Sequence[str], cache: Cache, error: WeightsError, **options: Any
) -> list[Backbone]:
    """The backbones that can be loaded by name, or from where this machine had them; and in place
    of others the sets of vectors that the cache has. To ask one of these for a vector raises
    `error`."""

    def refuse() -> Network:
        raise error

    found: list[Backbone] = []
    for name in names:
        try:
            found += load_several([name], **options)
            continue
        except WeightsError as own:
            if str(own) != str(error):
                raise error from None
        for one in Name.parse(name).each():
            try:
                spec = cache.find(one.recorded).spec
            except NoSuchSpace:
                raise error from None
            if spec.kind == "foreign" or spec.precision != options["precision"]:
                raise error
            if spec.face and name_of(spec.face.detector) != options["detector_name"]:
                raise error
            if place := cache.places().get(spec.digest):  # where they were on this machine
                with suppress(WeightsError):
                    found += load_several([place], **options)
                    continue
            found.append(Backbone(name=one.recorded, place="", spec=spec, open=refuse))
    return found


def _in_order(asked: Sequence[str | Backbone], named: Sequence[Backbone]) -> list[Backbone]:
    """What was asked for in its order; named: those that were asked for by name."""
    by_place = {one.place: one for one in named}
    found: list[Backbone] = []
    for one in asked:
        if isinstance(one, Backbone):
            found.append(one)
        else:
            found += [by_place[each.place] for each in Name.parse(one).each()]
    return found


def engines_of(
    backbones: Sequence[Backbone], todo: Plan, pace_finder: PaceFinder
) -> dict[int, Engine]:
    """The networks, loaded, that have something to embed, by position of the first backbone that
    shares their pass."""
    engines = {}
    leaders = np.array(leaders_of(backbones))
    for b in np.unique(leaders).tolist():
        if is_pixels(backbones[b]):
            continue
        if n_photos := int(todo.wanted[:, leaders == b].any(axis=1).sum()):
            with without_collection():
                network = backbones[b].open()
            note_networks()
            name = split_layers(backbones[b].name)[0]
            pace = pace_finder.begin(name, network, n_photos=n_photos)
            engines[b] = Engine(name, network, pace)
    return engines
