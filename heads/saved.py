"""Fitted heads on disk: weights as safetensors, everything else as JSON and CSV. No pickle.

    OUT/fit.json                 the table, where it came from, and the best head on dev
    OUT/<head>/card.json         what the head is, what made it, the sha256 of its weights
    OUT/<head>/weights.safetensors
    OUT/<head>/curves.csv        rate, epoch, train, dev
    OUT/<head>/predictions.csv   the test rows: id, truth, weight, prediction, group; with folds
                                 every row, each by the head that never saw it

A folder is written whole under another name and then renamed. The one that it takes the place of
keeps a hidden name until the user's own files in it have moved on; were that cut off, the next look
at the place goes on with it. What is read is not trusted: sizes
are checked before bytes are read, hashes before tensors are taken, and tensors must have exactly
the names, types and shapes that the card's few numbers imply.
"""

import csv
import hashlib
import io
import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from embedcache import disk
from embedcache.errors import CacheError, HeadError
from embedcache.machine import versions
from embedcache.spec import MAX_DIM, Spec
from heads.dataset.rows import Dataset
from heads.documents import PACKAGES, checked, digest_of, read_json
from heads.fitting.judge import Judged
from heads.fitting.result import Fit
from heads.folders import holds_earlier, identity, is_replaced, replace_folder
from heads.head import Head, Layer, Link, Standard

FORMAT = 1
MARKER = "fit.json"
_LAYERS = {"const": 1, "ridge": 1, "logistic": 1, "0fc": 1, "1fc": 2, "2fc": 3}
_MAX_JSON_BYTES = 16 << 20
_MAX_HEADER_BYTES = 64 << 10
_MAX_WEIGHT_BYTES = 4 << 30
_MAX_WIDTH = 65_536
_MAX_MEMBERS = 1024
LOOKS = 40  # at a folder that another process is replacing
LOOK_SECONDS = 0.05

Name = Literal["const", "ridge", "logistic", "0fc", "1fc", "2fc"]
Counts = dict[str, int]


class LabelsOrigin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The label table that a head was fitted on: its file name and sha256."""

    file: str
    sha256: str


class SplitOrigin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rows were split: sha256 of which row stands on which side, and the rule in words."""

    sha256: str
    rule: str


class PartOrigin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several backbones whose vectors stand side by side."""

    backbone: str
    spec_digest: str
    spec: dict[str, Any]


class _Origin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What made a head: vectors, labels, split, protocol and versions.

    together: of several backbones each one, in the order of their floats; spec is None then, and
        spec_digest their digests with spaces between.
    """

    backbone: str
    spec_digest: str
    spec: dict[str, Any] | None
    cache: str
    ref: str | None
    scope: str | None
    subset: str
    labels: LabelsOrigin
    split: SplitOrigin
    protocol: dict[str, Any]
    versions: dict[str, str]
    together: list[PartOrigin] | None = None


class Card(_Origin, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """card.json. dim, hidden, outputs: floats in, per hidden layer (0: none) and out."""

    format: int
    head: Name
    task: str
    target: str
    classes: list[str]
    weight: str | None
    link: Link
    dim: Annotated[int, Meta(ge=1, le=MAX_DIM)]
    outputs: Annotated[int, Meta(ge=1, le=_MAX_WIDTH)]
    members: Annotated[int, Meta(ge=1, le=_MAX_MEMBERS)]
    hidden: Annotated[int, Meta(ge=0, le=_MAX_WIDTH)]
    weights_sha256: str
    weights_bytes: Annotated[int, Meta(ge=8, le=_MAX_WEIGHT_BYTES)]
    figures: list[dict[str, Any]]
    n: Counts
    digest: str
    folds: int | None = None


class FitFile(_Origin, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """fit.json. heads: the digest of each head's card. best: the head that `load` takes."""

    format: int
    task: str
    target: str
    classes: dict[str, int] | list[str]
    n: Counts
    dropped: Counts
    noise_floor: float | None
    best: Name
    seconds: float
    rows: list[dict[str, Any]]
    by: list[dict[str, Any]]
    notes: list[str]
    heads: dict[Name, str]
    protocol_name: str = ""
    folds: int | None = None
    n_effective: float | None = None
    n_comparisons: int = 0


def save(fit: Fit, folder: str | Path) -> Path:
    """Write a fit to `folder`, replacing an earlier fit there; returns the folder.

    Other files there stay. Of several that save to one folder at once the last one wins, wholly.
    HeadError when the folder holds something else, or an earlier fit of which a file was changed.
    """

    def fill(fresh: Path) -> None:
        cards = {name: _write_head(fit, name, fresh / name) for name in fit.heads}
        document = fit.document() | {"format": FORMAT, "heads": cards} | _origin(fit)
        disk.write_new(fresh / MARKER, _json(document))

    return replace_folder(folder, MARKER, fill)


def check_out(folder: str | Path) -> bool:
    """Whether an earlier fit lies in a folder that `save` will write to.

    What a save that was cut off left beside the folder comes back first.
    HeadError where `save` would refuse the folder.
    """
    return holds_earlier(folder, MARKER)


def load(folder: str | Path) -> Head:
    """Read one head's folder, or the best head on dev of a whole fit's folder.

    HeadError when the folder is not a head, or was changed after it was written.
    """
    folder = Path(folder)
    for last in [False] * LOOKS + [True]:
        before = identity(folder)
        try:
            return _load(folder)
        except (HeadError, OSError):
            moves = identity(folder) != before or (before is None and is_replaced(folder))
            if last or not moves:
                raise
            time.sleep(LOOK_SECONDS)
    raise AssertionError("unreachable")


def _load(folder: Path) -> Head:
    """As `load`, of what is there at this moment."""
    if (folder / "fit.json").is_file() and not (folder / "card.json").is_file():
        whole = _read_fit(folder / "fit.json")
        head = _load(folder / whole.best)
        if head.card["digest"] != whole.heads[whole.best]:
            raise HeadError(f"{folder / whole.best} is not the head that fit.json lists; fit again")
        return head
    if (folder / "taste.json").is_file():
        raise HeadError(f"{folder} is a taste, not a head: read it with heads.load_taste")
    if not (folder / "card.json").is_file():
        raise HeadError(_no_head(folder))
    document = read_json(folder / "card.json", limit=_MAX_JSON_BYTES, error=HeadError)
    card = _checked_card(document, folder / "card.json")
    tensors = _read_weights(folder / "weights.safetensors", card)
    layers = tuple(
        Layer(tensors[f"layer{k}.weight"], tensors[f"layer{k}.bias"])
        for k in range(_LAYERS[card.head])
    )
    standard = Standard(tensors["standard.mean"], tensors["standard.scale"])
    return Head(card.head, card.link, standard, layers, document)


def _no_head(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}: 'embedcache fit-head --out DIR' writes a head"
    inside = sorted(path.parent.name for path in folder.glob("*/fit.json"))[:5]
    if inside:
        return f"{folder} is not a head; heads in it: {', '.join(inside)}"
    return (
        f"{folder} is not a head: it has neither fit.json nor card.json. "
        "'embedcache fit-head --out DIR' writes one"
    )


def tensor_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a card's head has."""
    widths = [card.dim, *[card.hidden] * (_LAYERS[card.head] - 1), card.outputs]
    shapes: dict[str, tuple[int, ...]] = {
        "standard.mean": (card.dim,),
        "standard.scale": (card.dim,),
    }
    for k, (inner, outer) in enumerate(itertools.pairwise(widths)):
        shapes[f"layer{k}.weight"] = (card.members, outer, inner)
        shapes[f"layer{k}.bias"] = (card.members, outer)
    return shapes


def _write_head(fit: Fit, name: str, folder: Path) -> str:
    from safetensors.numpy import save as to_bytes

    folder.mkdir()
    head = fit.heads[name]
    tensors = {"standard.mean": head.standard.mean, "standard.scale": head.standard.scale}
    for k, layer in enumerate(head.layers):
        tensors |= {f"layer{k}.weight": layer.weight, f"layer{k}.bias": layer.bias}
    raw = to_bytes({key: np.ascontiguousarray(value) for key, value in tensors.items()})
    data = fit.dataset
    card: dict[str, Any] = {
        "format": FORMAT,
        "head": name,
        "task": data.task,
        "target": data.target,
        "classes": list(data.classes),
        "weight": data.weight,
        "link": head.link,
        "dim": head.dim,
        "outputs": head.outputs,
        "members": len(head.layers[0].weight),
        "hidden": int(head.layers[0].weight.shape[1]) if len(head.layers) > 1 else 0,
        "weights_sha256": hashlib.sha256(raw).hexdigest(),
        "weights_bytes": len(raw),
        "figures": [row.document() for row in fit.rows if row.head == name],
        "n": dict(fit.n),
        "folds": fit.folds,
        **_origin(fit),
    }
    card["digest"] = digest_of(card)
    disk.write_new(folder / "weights.safetensors", raw, durable=False)
    disk.write_new(folder / "card.json", _json(card), durable=False)
    curve = [(p.rate, p.epoch, p.train, p.dev) for p in fit.curves[name]]
    titles = ("rate", "epoch", "train", "dev")
    disk.write_new(folder / "curves.csv", _csv(titles, curve), durable=False)
    if fit.test is not None:
        table = _predictions(fit.dataset, fit.test, name)
        disk.write_new(folder / "predictions.csv", table, durable=False)
    return str(card["digest"])


def _predictions(dataset: Dataset, test: Judged, name: str) -> bytes:
    truth = test.truth if test.truth.ndim == 2 else test.truth[:, None]
    seen = test.predictions[name]
    seen = seen if seen.ndim == 2 else seen[:, None]
    classes = dataset.classes
    titles = ["id"]
    several = truth.shape[1] > 1
    titles += [f"truth_{t}" for t in dataset.target_names] if several else ["truth"]
    titles += ["weight"]
    if seen.shape[1] == 1:
        titles += ["prediction"]
    else:
        titles += [f"prediction_{t}" for t in (classes or dataset.target_names)]
    titles += ["group"]
    weight = np.ones(len(truth)) if test.weight is None else test.weight
    shown = truth.tolist()
    if classes:
        shown = [[classes[int(row[0])]] for row in shown]
    columns = (weight.tolist(), seen.tolist(), test.groups.tolist())
    rows = zip(test.ids, shown, *columns, strict=True)
    return _csv(titles, ([i, *t, w, *p, g] for i, t, w, p, g in rows))


def _origin(fit: Fit) -> dict[str, Any]:
    """What made the head: vectors, labels, split, protocol and versions."""
    from_ = fit.dataset.provenance
    return {
        "backbone": from_.backbone,
        "spec_digest": from_.spec_digest,
        "spec": from_.spec,
        "cache": from_.cache,
        "ref": from_.ref,
        "scope": from_.scope,
        "subset": from_.subset_name,
        "labels": {"file": from_.labels_name, "sha256": from_.labels},
        "split": {"sha256": from_.split, "rule": from_.split_rule},
        "protocol": fit.protocol.document(),
        "versions": versions(PACKAGES),
        **({"together": [asdict(part) for part in from_.together]} if from_.together else {}),
    }


def _read_fit(path: Path) -> FitFile:
    """fit.json, checked; a fit of a later format, or one that names no head, is refused."""
    document = read_json(path, limit=_MAX_JSON_BYTES, error=HeadError)
    if document.get("format") != FORMAT:
        raise HeadError(f"{path} has format {document.get('format')!r}; this version reads 1")
    whole = checked(document, FitFile, where=path, error=HeadError)
    if whole.best not in whole.heads:
        raise HeadError(f"{path}: best is {whole.best!r}, which is not among its heads; fit again")
    return whole


def _checked_card(document: dict[str, Any], path: Path) -> Card:
    if document.get("format") != FORMAT:
        raise HeadError(f"{path} has format {document.get('format')!r}; this version reads 1")
    if document.get("digest") != digest_of(document):
        raise HeadError(f"{path} was changed after it was written; fit again")
    card = checked(document, Card, where=path, error=HeadError)
    if (card.hidden > 0) != (_LAYERS[card.head] > 1):
        raise HeadError(f"{path}: hidden is {card.hidden}, which a {card.head} head cannot have")
    if card.link == "softmax" and len(card.classes) != card.outputs:
        raise HeadError(f"{path}: {len(card.classes)} classes, but {card.outputs} outputs")
    if not card.classes and card.outputs > 1 and len(card.target.split(",")) != card.outputs:
        raise HeadError(f"{path}: {card.outputs} outputs, but the target is {card.target!r}")
    documents = [part.spec for part in card.together or ()]
    documents += [] if card.spec is None else [card.spec]
    if not documents:
        if card.spec_digest:
            raise HeadError(f"{path} has a spec digest but no spec")
        return card
    try:
        specs = [Spec.parse(document) for document in documents]
    except CacheError as error:
        raise HeadError(f"{path}: {error}") from None
    digests = " ".join(spec.digest for spec in specs)
    if digests != card.spec_digest or sum(spec.dim for spec in specs) != card.dim:
        raise HeadError(f"{path}: the spec and its digest do not belong together")
    if card.together and digests != " ".join(part.spec_digest for part in card.together):
        raise HeadError(f"{path}: a backbone and its digest do not belong together")
    return card


def _read_weights(
    path: Path, card: Card
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    shapes = tensor_shapes(card)
    body = 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    size = path.stat().st_size if path.is_file() else -1
    if size != card.weights_bytes or not body < size <= body + _MAX_HEADER_BYTES:
        raise HeadError(f"{path} has {size} bytes; the card says {card.weights_bytes}")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != card.weights_sha256:
        raise HeadError(f"{path} is not what the card lists (sha256 differs); fit again")
    try:
        tensors = from_bytes(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise HeadError(f"{path} is not a safetensors file: {error}") from None
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise HeadError(f"{path} holds other tensors than its card's {card.head} head has")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise HeadError(f"{path} holds NaN or infinite weights")
    if not (tensors["standard.scale"] > 0).all():
        raise HeadError(f"{path}: a scale is not above zero")
    return tensors


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False).encode()


def _csv(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue().encode()
