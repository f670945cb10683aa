"""What an extraction did and where its time went, as values that print themselves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from embedcache.photos.kinds import SEVERAL_FACES, Reason, in_words
from embedcache.spec import Json
from embedcache.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOutcome:
    """One backbone's part of a run.

    wanted = hit + embedded + failed + forgotten + left, in photos. A second copy of a content is a
    hit. forgotten: photos that `forget` has named, which are skipped.
    failures: reason -> photos.
    model_photos_per_second: the network's own rate in this run: measured alone, with reading
        paused, where the run was long enough for trials, else beside all other work; None when
        nothing was embedded.
    shares, bottleneck: of the whole run, for all its backbones together.
    pooling: how a photo's vector came about, in words; "" where it is not known.
    shape: of kept pixels, in words; "" of vectors.
    batch_size: images per forward pass at the end, None when nothing was to be embedded.
    workers: threads that read and decoded at the end.  compiled: whether the network was.
    """

    backbone: str
    spec: str
    dim: int
    wanted: int
    hit: int
    embedded: int
    failures: Mapping[str, int]
    seconds: float
    model_photos_per_second: float | None
    bottleneck: str
    shares: Mapping[str, float]
    batch_size: int | None = None
    workers: int = 1
    compiled: bool = False
    forgotten: int = 0
    pooling: str = ""
    shape: str = ""

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def left(self) -> int:
        """Photos that an interrupted run did not reach."""
        return self.wanted - self.hit - self.embedded - self.failed - self.forgotten

    @property
    def photos_per_second(self) -> float:
        return self.embedded / self.seconds if self.seconds else 0.0

    def document(self) -> dict[str, Json]:
        model = self.model_photos_per_second
        return {
            "backbone": self.backbone,
            "spec": self.spec,
            "dim": self.dim,
            "pooling": self.pooling or None,
            "wanted": self.wanted,
            "hit": self.hit,
            "embedded": self.embedded,
            "failed": self.failed,
            "forgotten": self.forgotten,
            "left": self.left,
            "failures": dict(self.failures),
            "seconds": round(self.seconds, 3),
            "photos_per_second": round(self.photos_per_second, 2),
            "model_photos_per_second": None if model is None else round(model, 2),
            "bottleneck": self.bottleneck,
            "shares": dict(self.shares),
            "batch_size": self.batch_size,
            "workers": self.workers,
            "compiled": self.compiled,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.backbone}  {self.shape or f'{self.dim}-d'}  spec {self.spec[:8]}"
            + (f"  ({self.pooling})" if self.pooling else ""),
            f"  {counted(self.wanted, 'photo')}: {self.hit:,} present, "
            f"{self.embedded:,} {'kept' if self.shape else 'embedded'}, "
            f"{self.failed:,} failed" + (f", {self.left:,} left" if self.left else ""),
        ]
        if self.failures:
            ordered = sorted(self.failures.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{n:,} {in_words(reason)}" for reason, n in ordered)
            lines.append(f"  failed: {shown}")
        if Reason.several_faces in self.failures:
            lines.append(f"  {SEVERAL_FACES}")
        if self.forgotten:
            lines.append(f"  skipped: {self.forgotten:,} forgotten before; `again` embeds them")
        if self.embedded and not self.shape:
            ceiling = self.model_photos_per_second
            lines.append(
                f"  {self.photos_per_second:.1f} photos/s"
                + (f" (the network alone: {ceiling:.1f})" if ceiling else "")
                + (
                    f", batches of {self.batch_size}, {counted(self.workers, 'thread')} decoding"
                    if self.batch_size  # else each worker of a cluster has its own
                    else ""
                )
                + (", compiled" if self.compiled else "")
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOutcome:
    """What one worker of a cluster did for all backbones; the rest is as in `SpaceOutcome`."""

    node: str
    embedded: int
    failed: int
    seconds: float
    model_photos_per_second: float | None
    bottleneck: str
    shares: Mapping[str, float]

    def document(self) -> dict[str, Json]:
        return {**asdict(self), "seconds": round(self.seconds, 3), "shares": dict(self.shares)}

    def __str__(self) -> str:
        rate = self.embedded / self.seconds if self.seconds else 0.0
        shares = ", ".join(f"{k} {share:.0%}" for k, share in self.shares.items() if share >= 0.01)
        return (
            f"{self.node}: {self.embedded:,} embedded, {rate:.1f} photos/s; "
            f"bottleneck: {self.bottleneck} ({shares})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What `extract` did, one entry per backbone.

    n_reducible: large JPEGs that were decoded at full size (`Clock.reducible`).
    part: the part of the photos that the run was for, such as "3/8"; "" for all.
    nodes: the workers of a cluster.  given_up: photos whose worker ended each
        time; they count as failed.
    remote: the shared copy that the run used, "" for none.  taken, offered: rows of vectors and
        faces that came from it and that were given to it.
    """

    spaces: tuple[SpaceOutcome, ...]
    interrupted: bool
    n_photos: int
    n_without_photo: int
    n_reducible: int
    seconds: float
    part: str = ""
    remote: str = ""
    taken: int = 0
    offered: int = 0
    nodes: tuple[NodeOutcome, ...] = ()
    given_up: int = 0

    def document(self) -> dict[str, Json]:
        return {
            "spaces": [space.document() for space in self.spaces],
            "photos": self.n_photos,
            "without_photo": self.n_without_photo,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "part": self.part or None,
            "remote": {"url": self.remote, "taken": self.taken, "offered": self.offered}
            if self.remote
            else None,
            **({"nodes": [node.document() for node in self.nodes]} if self.nodes else {}),
        }

    def __str__(self) -> str:
        lines = [str(space) for space in self.spaces]
        if self.part:
            lines.insert(0, f"part {self.part} of the photos")
        if self.n_without_photo:
            lines.append(
                f"left out: {counted(self.n_without_photo, 'row')} of the table without a photo"
            )
        if self.remote:
            lines.append(
                f"{counted(self.taken, 'row')} taken from {self.remote}, "
                f"{self.offered:,} offered to it"
            )
        if self.given_up:
            lines.append(
                f"given up: {counted(self.given_up, 'photo')} that ended each process that read "
                "them; `retry_failed` tries them again"
            )
        if self.nodes:
            lines += [f"{self.seconds:.1f} s", *map(str, self.nodes)]
        elif any(space.embedded for space in self.spaces):
            shares = self.spaces[0].shares.items()
            own, beside = (
                ", ".join(
                    f"{name} {share:.0%}"
                    for name, share in shares
                    if share >= 0.01 and (name in ("read", "decode")) == aside
                )
                for aside in (False, True)
            )
            lines.append(
                f"{self.seconds:.1f} s; bottleneck: {self.spaces[0].bottleneck} ({own}"
                + (f"; beside it: {beside})" if beside else ")")
            )
            if self.spaces[0].bottleneck == "decode" and self.n_reducible:
                lines.append(
                    f"{counted(self.n_reducible, 'large JPEG')}, at least four times as wide and "
                    "high as needed: `decode='reduced'` reads faster, as another spec"
                )
        if self.interrupted:
            lines.append("Interrupted: what was embedded is kept. Rerun the command to resume.")
        return "\n".join(lines)
