"""What became of the photos of a run on a cluster, once all its workers have ended."""

import os
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from embedcache.backbones.loading import Backbone
from embedcache.extraction.clock import SpaceTally
from embedcache.extraction.outcome import NodeOutcome, SpaceOutcome
from embedcache.extraction.part_queue import Unread
from embedcache.extraction.plan import Plan
from embedcache.extraction.provenance import about
from embedcache.photos.kinds import Reason
from embedcache.photos.table import Photos
from embedcache.store.columns import ABSENT, OK
from embedcache.store.space import Space
from embedcache.wording import counted, plain


def record_ended(backbones: Sequence[Backbone], spaces: Sequence[Space], ended: Plan) -> None:
    """Note photos that end their workers as failed, so that the next run leaves them out."""
    for k, (backbone, space) in enumerate(zip(backbones, spaces, strict=True)):
        lacking = ended.wanted[:, k] & (space.status(ended.digests) == ABSENT)
        digests = ended.digests[lacking]
        if len(digests):
            writer = space.writer(n_rows=len(digests), name=backbone.name, about=about("none"))
            writer.fail(digests, [Reason.worker_ended] * len(digests))
            writer.commit()


def say_unread(
    photos: Photos, todo: Plan, unread: Sequence[Unread], *, log: Callable[[str], None]
) -> list[Unread]:
    """Those that failed here too; the others are left, as only the workers' machines lack them."""
    failed = []
    unseen: dict[frozenset[str], list[str]] = {}
    for one in unread:
        path = photos.paths[int(todo.positions[one.row])]
        if one.reason in (Reason.vanished, Reason.unreadable) and os.access(path, os.R_OK):
            unseen.setdefault(one.machines, []).append(path)
        else:
            failed.append(one)
    for machines, paths in unseen.items():
        log(
            f"{counted(len(paths), 'photo')} not seen by {', '.join(sorted(machines))}, for "
            f"example {plain(paths[0])}: put them on a folder that all machines see under the same "
            "path"
        )
    return failed


def failures_of(todo: Plan, k: int, space: Space, failed: Sequence[Unread]) -> Counter[str]:
    """Photos by the reason for which no machine could read them; of backbone number k."""
    found: Counter[str] = Counter()
    rows = np.array([one.row for one in failed], np.int64)
    lacking = todo.wanted[rows, k] & (space.status(todo.digests[rows]) != OK)
    for one, lacks in zip(failed, lacking.tolist(), strict=True):
        if lacks:
            found[one.reason] += int(todo.copies[one.row])
    return found


def outcome_of(
    backbone: Backbone,
    before: SpaceTally,
    after: SpaceTally,
    nodes: Sequence[NodeOutcome],
    *,
    embedded: int,
    seconds: float,
) -> SpaceOutcome:
    """What became of one backbone's photos, by what the cache lacked before and lacks now."""
    rates = [node.model_photos_per_second for node in nodes if node.model_photos_per_second]
    slowest = max(nodes, key=lambda node: node.embedded, default=None)
    return SpaceOutcome(
        backbone=backbone.name,
        spec=backbone.spec.digest,
        dim=backbone.spec.dim,
        pooling=backbone.pooling,
        wanted=before.wanted,
        hit=after.hit - embedded,
        embedded=embedded,
        failures=dict(after.failed),
        seconds=seconds,
        model_photos_per_second=sum(rates) if rates else None,
        bottleneck="read" if slowest is None else slowest.bottleneck,
        shares={} if slowest is None else slowest.shares,
        forgotten=after.forgotten,
    )
