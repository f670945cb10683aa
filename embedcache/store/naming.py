"""How users name a set of vectors, and what a message says where a name fits none or several."""

import re
from collections.abc import Sequence
from pathlib import Path

from embedcache.errors import NoSuchSpace
from embedcache.spec import CROPS, shape_of, split_layers, unnamed
from embedcache.store.side_by_side import each_layer
from embedcache.store.space import Space

SHOWN_SPACES = 8  # in a message
_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def find_space(
    spaces: Sequence[Space], backbone: str, *, held_by: Path, pixels: bool = False
) -> Space:
    """The one of some spaces that a user calls `backbone`, as `Cache.find` says.

    held_by: the cache, for messages. Raises NoSuchSpace where none or several fit.
    """
    kept = [space for space in spaces if space.spec.kind == "pixels" and not pixels]
    spaces = [space for space in spaces if space not in kept]
    named = [(space, {plain_name(known) for known in space.names}) for space in spaces]
    name, prefix = backbone, ""
    fitting = [space for space, names in named if plain_name(name) in names]
    before, _, digits = backbone.rpartition("#")
    if not fitting and before and _PREFIX.fullmatch(digits):
        name, prefix = before, digits
        fitting = [
            space
            for space, names in named
            if plain_name(name) in names and space.digest.startswith(prefix)
        ]
    if not fitting and _PREFIX.fullmatch(backbone):
        fitting = [space for space in spaces if space.digest.startswith(backbone)]
    if len(fitting) > 1:
        fitting = [space for space in fitting if not _is_emptied(space)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    raise _no_such_space(backbone, name, spaces, fitting, kept, held_by=held_by)


def _no_such_space(
    backbone: str,
    name: str,
    spaces: Sequence[Space],
    fitting: Sequence[Space],
    kept: Sequence[Space],
    *,
    held_by: Path,
) -> NoSuchSpace:
    """What to say of a name: several spaces fit, or none.

    kept: spaces of pixels, where vectors are wanted.
    """
    if fitting:
        several = ", ".join(f"{name}#{space.digest[:8]}" for space in fitting)
        what = "pixels" if all(space.spec.kind == "pixels" for space in fitting) else "vectors"
        other = "preprocessing" if what == "pixels" else "weights or preprocessing"
        return NoSuchSpace(
            f"{held_by} holds {len(fitting)} sets of {what} of {name!r} (other {other}). Name one "
            f"of: {several}"
        )
    if _are_named(kept, backbone):
        return NoSuchSpace(
            f"{backbone!r} are pixels of photos, and vectors are wanted here; {held_by} "
            f"holds {_some_held(spaces, near='')}"
        )
    if len(layers := each_layer(backbone)) > 1:
        return NoSuchSpace(
            f"{backbone!r} are {len(layers)} sets of vectors, and one is wanted here: name "
            f"{layers[-1]}, for example"
        )
    held = _some_held(spaces, near=split_layers(backbone)[0])
    return NoSuchSpace(
        f"{held_by} has no vectors of {backbone!r}{_no_weights(backbone)}; it holds {held}. "
        "Name one of these, or run 'embedcache extract' with that backbone"
    )


def _are_named(spaces: Sequence[Space], name: str) -> bool:
    """Whether a name, or some digits, is that of one of some spaces."""
    before, _, digits = name.rpartition("#")
    named = {known for space in spaces for known in space.names}
    return bool({name, before} & named) or (
        _PREFIX.fullmatch(digits) is not None
        and any(space.digest.startswith(digits) for space in spaces)
    )


def plain_name(backbone: str) -> str:
    """A backbone's name without the folders of a path: `local-dir:/any/NAME@face` → `NAME@face`.

    The kind of name stays in front, so that a path never stands for a name of another kind. A crop
    stands before a layer: `NAME#LAYER@face` → `NAME@face#LAYER`.
    """
    body, layers = split_layers(backbone)
    layer = f"#{','.join(layers)}" if layers else ""
    kind, colon, rest = body.partition(":")
    if not colon or kind not in ("local-dir", "facenet"):
        return body + layer
    path, at, crop = rest.rpartition("@")
    if not at or crop not in CROPS:
        path, at, crop = rest, "", ""
    elif kind == "facenet" and CROPS[crop] == "only":  # what facenet: means without it
        at, crop = "", ""
    return f"{kind}:{path.rstrip('/').rpartition('/')[2]}{at}{crop}{layer}"


def _no_weights(backbone: str) -> str:
    """` (there is no folder PATH)` where a name holds the path of weights that are not there."""
    kind, _, path = split_layers(backbone)[0].partition(":")
    if path.rpartition("@")[2] in CROPS:
        path = path.rpartition("@")[0]
    what = {"local-dir": "folder", "facenet": "file"}.get(kind)
    if what is None or "/" not in path or Path(path).expanduser().exists():
        return ""
    return f" (there is no {what} {path})"


def _some_held(spaces: Sequence[Space], *, near: str) -> str:
    """Spaces with their sizes for a message, those of the network `near` first.

    A space of which everything was forgotten is not one that a user can name.
    """
    held = [space for space in spaces if not _is_emptied(space)]
    first = sorted(held, key=lambda one: not any(name.startswith(near) for name in one.names))
    shown = [f"{_label(space)} ({shape_of(space.spec)})" for space in first[:SHOWN_SPACES]]
    more = f" and {len(first) - SHOWN_SPACES} more" if len(first) > SHOWN_SPACES else ""
    return ", ".join(shown) + more or "no vectors"


def _is_emptied(space: Space) -> bool:
    """Whether a space has no segment and had some; one that a run is about to fill had none yet."""
    gone = space.history.log().gone
    return not space.segments() and any(name.startswith(f"{space.key}/") for name in gone)


def _label(space: Space) -> str:
    name = space.names[0] if space.names else unnamed(space.spec)
    return f"{name}#{space.digest[:8]}"


def without_ids(cache: Path, space: Space) -> str:
    """What to say of a cache whose rows have no photo ids, as after a pull."""
    return (
        f"{cache} has vectors but no photo ids: ids are not shared by default. Run "
        f"'embedcache extract PHOTOS --cache {cache} --backbone "
        f"{next(iter(space.names), 'NAME')}' once: it embeds nothing twice and records "
        f"the ids. Or 'embedcache pull --with-ids URL {cache}', if they were pushed"
    )
