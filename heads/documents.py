"""Our own small JSON and TOML files, checked against a type by msgspec.

    card = checked(read_json(path, limit=MAX, error=HeadError), Card, where=path, error=HeadError)

Every error names the field, what is allowed there, and what was found.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from embedcache.errors import InputError
from embedcache.spec import canonical_json

T = TypeVar("T")
# What saved heads and studies record the versions of.
PACKAGES = (
    ("embedcache", "numpy", "scipy", "scikit-learn", "polars", "safetensors")
    + ("torch", "timm", "facenet-pytorch")
)  # fmt: skip
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_MAX_SHOWN = 60


def read_kept(path: Path, kind: type[T], *, limit: int) -> T | None:
    """What was written to `path` as JSON of a type; None when there is none, or it is damaged.

    limit: bytes of the largest file that is read.
    """
    try:
        if path.stat().st_size > limit:
            return None
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None


def read_json(path: Path, *, limit: int, error: type[InputError]) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes; `error` for anything else."""
    if (size := path.stat().st_size) > limit:
        raise error(f"{path} has {size:,} bytes; at most {limit:,} are accepted")
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError):
        raise error(f"{path} is not JSON") from None
    if not isinstance(document, dict):
        raise error(f"{path} is not a JSON object")
    return document


def checked(document: Any, kind: type[T], *, where: str | Path, error: type[InputError]) -> T:
    """`document` as a `kind`; `error` says which field is wrong, what is allowed and what it is."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as problem:
        raise error(f"{where}: {_explained(str(problem), document, kind)}") from None


def _explained(problem: str, document: Any, kind: type) -> str:
    """msgspec's message ("Expected `int` >= 1 - at `$.dim`") with the range and the value."""
    text, _, path = problem.partition(" - at `$")
    value, allowed, names = document, inspect.type_info(kind), []
    for key, index in _STEP.findall(path):
        allowed = _inside(allowed, key)
        names.append(f".{key}" if key else f"[{index}]")
        if isinstance(value, Mapping):
            value = value.get(key, value)
        elif isinstance(value, list | tuple) and index.isdigit():
            value = value[int(index)]
    name = "".join(names).lstrip(".")
    if unknown := re.search("unknown field `(.*)`", text):
        known = [f.encode_name for one in _structs(allowed) for f in one.fields]
        return f"{name or 'it'} has no {unknown[1]!r}; it has {', '.join(known)}"
    if missing := re.search("missing required field `(.*)`", text):
        return f"{name or 'it'} lacks {missing[1]!r}"
    # A value of a mapping: msgspec does not say under which key.
    if "..." in path or not text.startswith(("Expected", "Invalid")):
        return f"{name}: {text.replace('`', '')}".removeprefix(": ")
    shown = repr(value)
    if len(shown) > _MAX_SHOWN:
        shown = shown[:_MAX_SHOWN] + "..."
    return f"{name or 'it'} must be {_described(allowed)}; got {shown}"


def _structs(allowed: inspect.Type) -> list[inspect.StructType | inspect.DataclassType]:
    kinds = allowed.types if isinstance(allowed, inspect.UnionType) else (allowed,)
    return [one for one in kinds if isinstance(one, inspect.StructType | inspect.DataclassType)]


def _inside(allowed: inspect.Type, key: str) -> inspect.Type:
    """The type of a field, or of the items of a list or a mapping."""
    for kind in allowed.types if isinstance(allowed, inspect.UnionType) else (allowed,):
        if isinstance(kind, inspect.StructType | inspect.DataclassType):
            for item in kind.fields:
                if item.encode_name == key:
                    return item.type
        elif isinstance(kind, inspect.DictType):
            return kind.value_type
        elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
            return kind.item_type
    return inspect.AnyType()


def _described(allowed: inspect.Type) -> str:
    """A type in words: "a whole number from 1 to 65536", "one of adam, sgd"."""
    if isinstance(allowed, inspect.Metadata):
        return _described(allowed.type)
    if isinstance(allowed, inspect.UnionType):
        return " or ".join(_described(one) for one in allowed.types)
    if isinstance(allowed, inspect.LiteralType):
        return "one of " + ", ".join(map(str, allowed.values))
    if isinstance(allowed, inspect.IntType | inspect.FloatType):
        words = "a whole number" if isinstance(allowed, inspect.IntType) else "a number"
        if allowed.ge is not None and allowed.le is not None:
            return f"{words} from {allowed.ge} to {allowed.le}"
        if allowed.gt is not None:
            return f"{words} above {allowed.gt}"
        return words if allowed.ge is None else f"{words}, {allowed.ge} or more"
    names = {
        inspect.StrType: "text",
        inspect.BoolType: "true or false",
        inspect.NoneType: "nothing",
        inspect.ListType: "a list",
        inspect.VarTupleType: "a list",
        inspect.DictType: "a table of keys",
        inspect.StructType: "a table of keys",
        inspect.DataclassType: "a table of keys",
    }
    words = names.get(type(allowed), "something else")
    if isinstance(allowed, inspect.ListType | inspect.VarTupleType):
        return f"{words}, each {_described(allowed.item_type)}"
    return words


def digest_of(card: dict[str, Any]) -> str:
    """sha256 of a card without its own `digest`; "" where it holds what JSON cannot."""
    rest = {name: value for name, value in card.items() if name != "digest"}
    try:
        return hashlib.sha256(canonical_json(rest)).hexdigest()
    except ValueError:
        return ""
