"""Tastes on disk: weights as safetensors, everything else as JSON. No pickle.

    OUT/taste.json            what it is, what made it, its table, the sha256 of the other files
    OUT/weights.safetensors   the common part, the directions, what each viewer owns
    OUT/raters.json           the viewers' ids, in the order of the rows that they own

What is read is not trusted: sizes are checked before bytes are read, hashes before they are used,
and tensors must have exactly the names, types and shapes that the card's few numbers imply.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, HeadError
from embedcache.machine import versions
from embedcache.spec import MAX_DIM, Spec
from heads.documents import PACKAGES, checked, digest_of, read_json
from heads.folders import holds_earlier, replace_folder
from heads.head import Standard
from heads.saved import LabelsOrigin, SplitOrigin
from heads.taste.model import Taste
from heads.taste.result import TasteFit

FORMAT = 1
MARKER = "taste.json"
MAX_RATERS = 50_000_000
_MAX_CARD_BYTES = 16 << 20
_MAX_RATERS_BYTES = 2 << 30
_MAX_HEADER_BYTES = 64 << 10
_MAX_WEIGHT_BYTES = 8 << 30
_MAX_RANK = 1024

Bytes = Annotated[int, Meta(ge=2, le=_MAX_WEIGHT_BYTES)]


class Card(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """taste.json. dim: floats per vector.  rank: directions beside the common score's spread."""

    format: int
    backbone: str
    spec_digest: str
    spec: dict[str, Any] | None
    cache: str
    ref: str | None
    scope: str | None
    ratings: LabelsOrigin
    split: SplitOrigin
    versions: dict[str, str]
    dim: Annotated[int, Meta(ge=1, le=MAX_DIM)]
    rank: Annotated[int, Meta(ge=0, le=_MAX_RANK)]
    n_raters: Annotated[int, Meta(ge=1, le=MAX_RATERS)]
    weights_sha256: str
    weights_bytes: Bytes
    raters_sha256: str
    raters_bytes: Annotated[int, Meta(ge=2, le=_MAX_RATERS_BYTES)]
    fit: dict[str, Any]
    digest: str


def save(fit: TasteFit, folder: str | Path) -> Path:
    """Write a taste to `folder`, replacing an earlier one there; returns the folder.

    Other files there stay. HeadError when the folder holds something else.
    """

    def fill(fresh: Path) -> None:
        from safetensors.numpy import save as to_bytes

        weights = to_bytes(
            {name: np.ascontiguousarray(tensor) for name, tensor in _tensors(fit.taste).items()}
        )
        raters = json.dumps(list(fit.taste.raters)).encode()
        card = _card(fit, weights, raters)
        disk.write_new(fresh / "weights.safetensors", weights, durable=False)
        disk.write_new(fresh / "raters.json", raters, durable=False)
        disk.write_new(fresh / MARKER, json.dumps(card, indent=1, allow_nan=False).encode())

    return replace_folder(folder, MARKER, fill)


def check_out(folder: str | Path) -> bool:
    """Whether an earlier taste lies in a folder that `save` will write to; HeadError if it may not.

    What a save that was cut off left beside the folder comes back first.
    """
    return holds_earlier(folder, MARKER)


def load_taste(folder: str | Path) -> Taste:
    """Read a taste's folder; HeadError where it is none, or was changed after it was written."""
    folder = Path(folder)
    path = folder / MARKER
    if not path.is_file():
        raise HeadError(
            f"{folder} is not a taste: it has no {MARKER}. 'embedcache fit-taste --out DIR' "
            "writes one"
        )
    document = read_json(path, limit=_MAX_CARD_BYTES, error=HeadError)
    card = _checked(document, path)
    raters = _raters(_read(folder / "raters.json", card.raters_bytes, card.raters_sha256), card)
    found = _weights(folder / "weights.safetensors", card)
    return Taste(
        standard=Standard(found["standard.mean"], found["standard.scale"]),
        weight=found["common.weight"],
        bias=float(found["common.bias"][0]),
        directions=found["directions.weight"],
        offsets=found["directions.bias"],
        penalty=found["penalty"].astype(np.float64),
        owned=found["owned"],
        raters=raters,
        card=document,
    )


def _tensors(taste: Taste) -> dict[str, NDArray[np.float32]]:
    return {
        "standard.mean": taste.standard.mean,
        "standard.scale": taste.standard.scale,
        "common.weight": taste.weight,
        "common.bias": np.array([taste.bias], np.float32),
        "directions.weight": taste.directions,
        "directions.bias": taste.offsets,
        "penalty": taste.penalty.astype(np.float32),
        "owned": taste.owned,
    }


def _shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a card's taste has."""
    k = 1 + card.rank
    return {
        "standard.mean": (card.dim,),
        "standard.scale": (card.dim,),
        "common.weight": (card.dim,),
        "common.bias": (1,),
        "directions.weight": (k, card.dim),
        "directions.bias": (k,),
        "penalty": (1 + k,),
        "owned": (card.n_raters, 1 + k),
    }


def _card(fit: TasteFit, weights: bytes, raters: bytes) -> dict[str, Any]:
    source, taste = fit.ratings.provenance, fit.taste
    card: dict[str, Any] = {
        "format": FORMAT,
        "backbone": source.backbone,
        "spec_digest": source.spec_digest,
        "spec": source.spec,
        "cache": source.cache,
        "ref": source.ref,
        "scope": source.scope,
        "ratings": {"file": source.labels_name, "sha256": source.labels},
        "split": {"sha256": source.split, "rule": source.split_rule},
        "versions": versions(PACKAGES),
        "dim": taste.dim,
        "rank": len(taste.directions) - 1,
        "n_raters": len(taste.raters),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "weights_bytes": len(weights),
        "raters_sha256": hashlib.sha256(raters).hexdigest(),
        "raters_bytes": len(raters),
        "fit": fit.document(),
    }
    return card | {"digest": digest_of(card)}


def _checked(document: dict[str, Any], path: Path) -> Card:
    if document.get("format") != FORMAT:
        raise HeadError(f"{path} has format {document.get('format')!r}; this version reads 1")
    if document.get("digest") != digest_of(document):
        raise HeadError(f"{path} was changed after it was written; fit again")
    card = checked(document, Card, where=path, error=HeadError)
    if card.spec is None:
        if card.spec_digest:
            raise HeadError(f"{path} has a spec digest but no spec")
        return card
    try:
        spec = Spec.parse(card.spec)
    except CacheError as error:
        raise HeadError(f"{path}: {error}") from None
    if spec.digest != card.spec_digest or spec.dim != card.dim:
        raise HeadError(f"{path}: the spec and its digest do not belong together")
    return card


def _read(path: Path, n_bytes: int, sha256: str) -> bytes:
    """A file of exactly this size and hash."""
    size = path.stat().st_size if path.is_file() else -1
    if size != n_bytes:
        raise HeadError(f"{path} has {size} bytes; the card says {n_bytes}")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise HeadError(f"{path} is not what the card lists (sha256 differs); fit again")
    return raw


def _raters(raw: bytes, card: Card) -> dict[str, int]:
    try:
        names = msgspec.json.decode(raw, type=list[str])
    except (msgspec.DecodeError, RecursionError):
        raise HeadError("raters.json is not a list of ids; fit again") from None
    found = {name: place for place, name in enumerate(names)}
    if len(found) != len(names) or len(names) != card.n_raters:
        raise HeadError(f"raters.json lists {len(found)} raters; the card says {card.n_raters}")
    return found


def _weights(path: Path, card: Card) -> dict[str, NDArray[np.float32]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    shapes = _shapes(card)
    body = 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if not body < card.weights_bytes <= body + _MAX_HEADER_BYTES:
        raise HeadError(f"{path}: the card says {card.weights_bytes} bytes, its shapes {body}")
    raw = _read(path, card.weights_bytes, card.weights_sha256)
    try:
        tensors: dict[str, NDArray[np.float32]] = from_bytes(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise HeadError(f"{path} is not a safetensors file: {error}") from None
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise HeadError(f"{path} holds other tensors than its card's taste has")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise HeadError(f"{path} holds NaN or infinite weights")
    if not ((tensors["standard.scale"] > 0).all() and (tensors["penalty"] > 0).all()):
        raise HeadError(f"{path}: a scale or a penalty is not above zero")
    return tensors
