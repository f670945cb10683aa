"""Tombstones and refs on their way to a shared copy."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.refs import MAX_REF_BYTES, Pins, encode_ref, read_ref, same_pins
from embedcache.store.sealed import unseal
from embedcache.store.tombstones import FOLDER as TOMBSTONES


def send_tombstones(copy: SharedCopy, cache: Cache, counts: MoveCounts, *, dry_run: bool) -> None:
    """Send the tombstones that the shared copy lacks, so that pulls of others obey them."""
    theirs = copy.tombstones()
    for path in sorted((cache.path / TOMBSTONES).glob("[!.]*.json")):
        if path.name not in theirs:
            if not dry_run:
                copy.remote.create(f"{TOMBSTONES}/{path.name}", path.read_bytes())
            counts.tombstones += 1


def send_refs(
    copy: SharedCopy,
    cache: Cache,
    counts: MoveCounts,
    *,
    with_ids: bool,
    replaces: bool,
    dry_run: bool,
) -> dict[str, Pins]:
    """Send the refs that the shared copy lacks; returns {name: pins} of those sent.

    replaces: a ref that `forget` changed here takes the place of the one there.
    """
    theirs = copy.refs()
    sent: dict[str, Pins] = {}
    for path in sorted((cache.path / "refs").glob("[!.]*.json")):
        name, key = path.stem, f"refs/{path.stem}.json"
        pins = read_ref(cache.path, name)
        document, _ = unseal(path.read_bytes(), what=f"ref {name}", limit=MAX_REF_BYTES)
        changes = document["changes"]
        raw = encode_ref(pins if with_ids else replace(pins, photos=None), changes=changes)
        if name not in theirs:
            if len(raw) <= MAX_REF_BYTES and (dry_run or copy.remote.create(key, raw)):
                sent[name] = pins
        elif same_pins(pins, theirs[name][0]):
            continue
        elif replaces and changes:
            if not dry_run:
                copy.remote.write(key, partial(_once, raw), size=len(raw))
            sent[name] = pins
        else:
            counts.notes.append(
                f"ref {name} exists there and pins other segments. Refs never change: choose "
                "another name"
            )
    counts.refs += sent
    return sent


def _once(raw: bytes) -> Iterator[bytes]:
    yield raw
