"""Fitted heads on disk: weights as safetensors, everything else as JSON and CSV. No pickle.

    OUT/fit.json                 the table, where it came from, and the best head on dev
    OUT/<head>/card.json         what the head is, what made it, the sha256 of its weights
    OUT/<head>/weights.safetensors
    OUT/<head>/curves.csv        rate, epoch, train, dev
    OUT/<head>/predictions.csv   the test rows: id, truth, weight, prediction

A folder is written whole under another name and then renamed. What is read is not trusted: sizes
are checked before bytes are read, hashes before tensors are taken, and tensors must have exactly
the names, types and shapes that the card's few numbers imply.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import CacheError, HeadError
from embedcache.spec import MAX_DIM, Spec, canonical_json
from heads.fitting.result import Fit
from heads.head import LINKS, Head, Layer, Standard

FORMAT = 1
NAMES = ("const", "ridge", "logistic", "0fc", "1fc", "2fc")
_LAYERS = {"const": 1, "ridge": 1, "logistic": 1, "0fc": 1, "1fc": 2, "2fc": 3}
_MAX_JSON_BYTES = 16 << 20
_MAX_HEADER_BYTES = 64 << 10
_MAX_WEIGHT_BYTES = 4 << 30
_MAX_WIDTH = 65_536
_MAX_MEMBERS = 1024


def save(fit: Fit, folder: str | Path) -> Path:
    """Write a fit to `folder`, replacing an earlier fit there; returns the folder.

    HeadError when the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise HeadError(f"{folder} is a file; name a folder for the heads")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "fit.json").is_file():
        raise HeadError(f"{folder} holds something other than an earlier fit; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o777 & ~_umask())
        cards = {name: _write_head(fit, name, fresh / name) for name in fit.heads}
        document = fit.document() | {"format": FORMAT, "heads": cards} | _origin(fit)
        _write(fresh / "fit.json", json.dumps(document, indent=1, allow_nan=False).encode())
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            folder.rename(old / "old")
            fresh.rename(folder)
            shutil.rmtree(old)
        else:
            fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return folder


def load(folder: str | Path) -> Head:
    """Read one head's folder, or the best head on dev of a whole fit's folder.

    HeadError when the folder is no head, or not as it was written.
    """
    folder = Path(folder)
    if (folder / "fit.json").is_file() and not (folder / "card.json").is_file():
        whole = _read_json(folder / "fit.json")
        cards, best = whole.get("heads"), whole.get("best")
        if not isinstance(cards, dict) or best not in NAMES or best not in cards:
            raise HeadError(f"{folder}/fit.json names no best head; fit again")
        head = load(folder / best)
        if head.card["digest"] != cards[best]:
            raise HeadError(f"{folder / best} is not the head that fit.json lists; fit again")
        return head
    if not (folder / "card.json").is_file():
        raise HeadError(
            f"{folder} is no head: it has neither fit.json nor card.json. "
            f"'embedcache fit-head --out DIR' writes one"
        )
    card = _checked_card(_read_json(folder / "card.json"), folder)
    shapes = tensor_shapes(card)
    tensors = _read_weights(folder / "weights.safetensors", card, shapes)
    layers = tuple(
        Layer(tensors[f"layer{k}.weight"], tensors[f"layer{k}.bias"])
        for k in range(_LAYERS[card["head"]])
    )
    standard = Standard(tensors["standard.mean"], tensors["standard.scale"])
    return Head(card["head"], card["link"], standard, layers, card)


def tensor_shapes(card: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a card's head has."""
    dim, hidden, members = card["dim"], card["hidden"], card["members"]
    widths = [dim, *[hidden] * (_LAYERS[card["head"]] - 1), card["outputs"]]
    shapes: dict[str, tuple[int, ...]] = {"standard.mean": (dim,), "standard.scale": (dim,)}
    for k, (inner, outer) in enumerate(itertools.pairwise(widths)):
        shapes[f"layer{k}.weight"] = (members, outer, inner)
        shapes[f"layer{k}.bias"] = (members, outer)
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
        "n": data.n,
        **_origin(fit),
    }
    card["digest"] = _digest(card)
    _write(folder / "weights.safetensors", raw)
    _write(folder / "card.json", json.dumps(card, indent=1, allow_nan=False).encode())
    curve = [(p.rate, p.epoch, p.train, p.dev) for p in fit.curves[name]]
    _write(folder / "curves.csv", _csv(("rate", "epoch", "train", "dev"), curve))
    _write(folder / "predictions.csv", _predictions(fit, name))
    return str(card["digest"])


def _predictions(fit: Fit, name: str) -> bytes:
    test = fit.test
    truth = test.truth if test.truth.ndim == 2 else test.truth[:, None]
    seen = test.predictions[name]
    seen = seen if seen.ndim == 2 else seen[:, None]
    classes = fit.dataset.classes
    titles = ["id"]
    several = truth.shape[1] > 1
    titles += [f"truth_{t}" for t in fit.dataset.target_names] if several else ["truth"]
    titles += ["weight"]
    if seen.shape[1] == 1:
        titles += ["prediction"]
    else:
        titles += [f"prediction_{t}" for t in (classes or fit.dataset.target_names)]
    weight = np.ones(len(truth)) if test.weight is None else test.weight
    told = truth.tolist()
    if classes:
        told = [[classes[int(row[0])]] for row in told]
    rows = zip(test.ids, told, weight.tolist(), seen.tolist(), strict=True)
    return _csv(titles, ([i, *t, w, *p] for i, t, w, p in rows))


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
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("embedcache", "numpy", "torch", "scikit-learn", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _checked_card(card: dict[str, Any], folder: Path) -> dict[str, Any]:
    if card.get("format") != FORMAT:
        raise HeadError(f"{folder} has a card of format {card.get('format')!r}; this is {FORMAT}")
    if card.get("digest") != _digest(card):
        raise HeadError(f"{folder}/card.json is not as it was written; fit again")
    limits = {"dim": (1, MAX_DIM), "outputs": (1, _MAX_WIDTH), "hidden": (0, _MAX_WIDTH)}
    limits |= {"members": (1, _MAX_MEMBERS), "weights_bytes": (8, _MAX_WEIGHT_BYTES)}
    for name, (low, high) in limits.items():
        value = card.get(name)
        if type(value) is not int or not low <= value <= high:
            raise HeadError(f"{folder}/card.json: {name} is {low} to {high}; got {value!r}")
    if card.get("head") not in NAMES or card.get("link") not in LINKS:
        raise HeadError(f"{folder}/card.json is of an unknown head or link")
    if (card["hidden"] > 0) != (_LAYERS[card["head"]] > 1):
        raise HeadError(f"{folder}/card.json: hidden is {card['hidden']} for a {card['head']}")
    classes = card.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise HeadError(f"{folder}/card.json: classes are a list of names")
    if card["link"] == "softmax" and len(classes) != card["outputs"]:
        raise HeadError(f"{folder}/card.json: {len(classes)} classes, {card['outputs']} outputs")
    target, outputs = card.get("target"), card["outputs"]
    if not isinstance(target, str) or (
        not classes and outputs > 1 and len(target.split(",")) != outputs
    ):
        raise HeadError(f"{folder}/card.json: {outputs} outputs for the target {target!r}")
    if card.get("spec") is not None:
        try:
            spec = Spec.parse(card["spec"])
        except CacheError as error:
            raise HeadError(f"{folder}/card.json: {error}") from None
        if spec.digest != card.get("spec_digest") or spec.dim != card["dim"]:
            raise HeadError(f"{folder}/card.json: the spec and its digest do not belong together")
    elif card.get("spec_digest"):
        raise HeadError(f"{folder}/card.json has a spec digest and no spec")
    return card


def _read_weights(
    path: Path, card: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    body = 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    size = path.stat().st_size if path.is_file() else -1
    if size != card["weights_bytes"] or not body < size <= body + _MAX_HEADER_BYTES:
        raise HeadError(f"{path} has {size} bytes; the card says {card['weights_bytes']}")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != card.get("weights_sha256"):
        raise HeadError(f"{path} is not what the card lists (sha256 differs); fit again")
    try:
        tensors = from_bytes(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise HeadError(f"{path} is not a safetensors file: {error}") from None
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise HeadError(f"{path} holds other tensors than its card's {card['head']} head has")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise HeadError(f"{path} holds NaN or infinite weights")
    if not (tensors["standard.scale"] > 0).all():
        raise HeadError(f"{path}: a scale is not above zero")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise HeadError(f"{path} is larger than any card")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise HeadError(f"{path} is not JSON; fit again") from None
    if not isinstance(document, dict):
        raise HeadError(f"{path} is not a JSON object; fit again")
    return document


def _digest(card: dict[str, Any]) -> str:
    rest = {name: value for name, value in card.items() if name != "digest"}
    try:
        return hashlib.sha256(canonical_json(rest)).hexdigest()
    except ValueError:
        return ""


def _csv(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
