"""A swipe log becomes labels: like ratios, their weights, and Table 1 (paper, section 3).

    build("users.csv", "swipes.csv", "labels.csv")  ->  Labels, which prints itself

The log may be far larger than memory. It is read once, as a stream, into a few bytes per swipe in
a temporary folder beside the output; everything else is computed from those, one part of the
recipients at a time.

A swipe counts unless a rule below removes it; the first rule that matches names the reason.

    unknown_recipient   recipient_id is not in the user table
    no_photo            the recipient has no photo
    self_swipe          sender and recipient are the same user
    undated             no time, though the recipient's photo changed at a known time
    before_photo        made before the recipient's last photo change (section 3.3)
    duplicate           equal to another swipe in sender, recipient, time, decision and gender

Values that cannot be right (a decision other than 0 and 1, a time that does not parse) are errors,
not rows to drop: they mean that the wrong column or file was given.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from embedcache.errors import LabelsError
from embedcache.wording import counted
from heads.labels import swipes

REASONS = (
    "unknown_recipient",
    "no_photo",
    "self_swipe",
    "undated",
    "before_photo",
    "duplicate",
)
COLUMNS = ("user_id", "photo", "gender", "like_ratio", "swipes", "good")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenderCounts:
    """Section 3.4 for one gender; swipes are counted as made (by senders) and received."""

    users: int = 0
    users_with_photo: int = 0
    users_labelled: int = 0
    swipes_made: int = 0
    swipes_made_kept: int = 0
    swipes_received: int = 0
    swipes_received_kept: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What `build` wrote and what it counted.

    users_labelled: rows of the label table.
    removed: swipes per reason, in the order of `REASONS`; with `swipes_kept` they add up to
        `swipes`.
    by_gender: per gender as the tables spell it, and "unknown".
    table1: sender -> recipient -> likes / kept swipes, pooled; None without swipes.
    notes: what the inputs did not allow, in sentences.
    """

    path: Path
    users: int
    users_with_photo: int
    users_labelled: int
    swipes: int
    swipes_kept: int
    removed: Mapping[str, int]
    by_gender: Mapping[str, GenderCounts]
    table1: Mapping[str, Mapping[str, float | None]]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The JSON object of `embedcache labels --json`."""
        return {
            "labels": str(self.path),
            "users": self.users,
            "users_with_photo": self.users_with_photo,
            "users_labelled": self.users_labelled,
            "swipes": self.swipes,
            "swipes_kept": self.swipes_kept,
            "swipes_removed": dict(self.removed),
            "by_gender": {gender: asdict(group) for gender, group in self.by_gender.items()},
            "table1": {sender: dict(row) for sender, row in self.table1.items()},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        genders = list(self.by_gender)
        width = max(12, *(len(gender) + 2 for gender in genders))
        lines = [" " * 26 + "".join(f"{name:>{width}}" for name in ("all", *genders))]
        totals = (
            ("users", "users", self.users),
            ("  with a photo", "users_with_photo", self.users_with_photo),
            ("  with a label", "users_labelled", self.users_labelled),
            ("swipes, by sender", "swipes_made", self.swipes),
            ("  kept", "swipes_made_kept", self.swipes_kept),
            ("swipes, by recipient", "swipes_received", self.swipes),
            ("  kept", "swipes_received_kept", self.swipes_kept),
        )
        for title, field, total in totals:
            cells = [total, *(getattr(self.by_gender[gender], field) for gender in genders)]
            lines.append(f"{title:<26}" + "".join(f"{cell:>{width},}" for cell in cells))
        lines += ["", "swipes removed"]
        lines += [
            f"  {name.replace('_', ' '):<24}{n:>{width},}" for name, n in self.removed.items()
        ]
        lines += ["", "Table 1. Like ratios by sender's (rows) and recipient's gender."]
        recipients = list(next(iter(self.table1.values()), {}))
        lines.append(" " * 8 + "".join(f"{'-> ' + name:>{width}}" for name in recipients))
        for sender, row in self.table1.items():
            cells_of_row = ("-" if row[r] is None else f"{row[r]:.3f}" for r in recipients)
            lines.append(f"{sender + ' ->':<8}" + "".join(f"{c:>{width}}" for c in cells_of_row))
        lines += ["", *(f"note: {note}" for note in self.notes), f"wrote {self.path}"]
        return "\n".join(lines)


def build(
    users_path: str | os.PathLike[str],
    swipes_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    keep_unswiped: bool = False,
) -> Labels:
    """Write the label table of the users with a photo, and count what was kept and why.

    users_path: .csv or .parquet with user_id, gender, photo (relative to the table) and, if photos
        changed, photo_updated_at. Several rows of one user are that user's photo history: the row
        with the last photo_updated_at counts. Other columns are copied.
    swipes_path: .csv or .parquet with recipient_id, liked (0/1) and, as known, sender_id,
        sender_gender, swiped_at. Without sender_gender the sender is looked up among the users; an
        empty one is unknown: its swipes count in like_ratio and are left out of Table 1. Times are
        ISO 8601 (UTC unless they say otherwise) or Unix seconds.
    out_path: written whole or not at all, .csv or .parquet: user_id, photo (relative to this
        file), gender, like_ratio (likes / swipes), swipes (the weight), good (1 where
        like_ratio is above the median of the same gender), then the other user columns.
    keep_unswiped: also write users with a photo and no kept swipe, with an empty like_ratio.
    Raises LabelsError for missing columns, values that cannot be right and empty files.
    """
    users_path, swipes_path, out_path = Path(users_path), Path(swipes_path), Path(out_path)
    if out_path.suffix.lower() not in (".csv", ".parquet"):
        raise LabelsError(f"a label table is a .csv or .parquet file; got {out_path.name!r}")
    if out_path.is_dir():
        raise LabelsError(f"{out_path} is a folder; name a .csv or .parquet file to write")
    if not out_path.parent.is_dir():
        raise LabelsError(f"{out_path} cannot be written: there is no folder {out_path.parent}")
    users = _users(users_path)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=out_path.parent, prefix=".labels-") as folder:
        compact = Path(folder) / "swipes.parquet"
        swipes.compact(swipes_path, users, compact, notes)
        counts, ratios = swipes.aggregate(compact)
    table = _table(users, ratios, users_path, out_path, keep_unswiped=keep_unswiped)
    _write(table, out_path)
    labelled = table.filter(pl.col("swipes") > 0)
    return _summary(out_path, users, labelled, counts, notes)


def _users(path: Path) -> pl.DataFrame:
    """The user table, one row per user in file order; photo_updated_at as UTC in `_changed`."""
    frame = swipes.scan(path, ("user_id", "gender", "photo"), "user")
    clashes = [name for name in COLUMNS[3:] if name in frame.collect_schema().names()]
    if clashes:
        raise LabelsError(
            f"{path} has a column {clashes[0]!r}, which the label table writes: rename it"
        )
    has_times = "photo_updated_at" in frame.collect_schema().names()
    changed = swipes.time(frame, "photo_updated_at", path) if has_times else pl.lit(None)
    try:
        users = frame.with_columns(
            swipes.text("user_id").alias("user_id"),
            swipes.known("gender").alias("gender"),
            swipes.known("photo").alias("photo"),
            changed.cast(pl.Datetime("us")).alias("_changed"),
        ).collect()
    except PolarsError as error:
        raise swipes.unreadable(path, error) from None
    if users.is_empty():
        raise LabelsError(f"{path} has no rows below its header")
    if n := users["user_id"].null_count():
        raise LabelsError(f"{path} has {counted(n, 'row')} without a user_id")
    if has_times:
        swipes.refuse_bad_times(users.lazy(), "photo_updated_at", path)
        users = users.with_row_index("_row").sort("_changed", nulls_last=False, maintain_order=True)
        # Two rows of one user at one time would leave the photo to chance: both are refused below.
        last = pl.col("_changed").eq_missing(pl.col("_changed").last().over("user_id"))
        users = users.filter(last).sort("_row").drop("_row")
    if (twice := users.filter(pl.col("user_id").is_duplicated())).height:
        raise LabelsError(
            f"{path} has more than one row for user {twice['user_id'][0]!r}: keep one, or "
            "add photo_updated_at (the last photo counts)"
        )
    if users["gender"].n_unique() > swipes.MAX_GENDERS:
        raise LabelsError(
            f"{path} has {users['gender'].n_unique():,} different genders, such as "
            f"{users['gender'].drop_nulls()[0]!r}: is 'gender' the right column?"
        )
    return users


def _table(
    users: pl.DataFrame, ratios: pl.DataFrame, users_path: Path, out: Path, *, keep_unswiped: bool
) -> pl.DataFrame:
    """The label table, in the order of the user table."""
    # Real folders on both sides: a relative path through a linked folder would lead elsewhere.
    prefix = os.path.relpath(os.path.realpath(users_path.parent), os.path.realpath(out.parent))
    prefix = "" if prefix == os.curdir else Path(prefix).as_posix() + "/"
    photo = pl.col("photo")
    table = (
        users.with_row_index("_recipient")
        .join(
            ratios.select(pl.all().name.prefix("_")),
            on="_recipient",
            how="left",
            maintain_order="left",
        )
        .filter(photo.is_not_null())
        .with_columns(
            pl.when(photo.str.starts_with("/"))
            .then(photo)
            .otherwise(prefix + photo)
            .alias("photo"),
            pl.col("_n").fill_null(0).alias("swipes"),
            (pl.col("_likes") / pl.col("_n")).alias("like_ratio"),
        )
    )
    # By gender: the median over all users would mostly separate women from men (Table 1).
    median = pl.col("like_ratio").median().over("gender")
    table = table.with_columns((pl.col("like_ratio") > median).cast(pl.UInt8).alias("good"))
    if not keep_unswiped:
        table = table.filter(pl.col("swipes") > 0)
    others = [name for name in users.columns if name not in (*COLUMNS, "_changed")]
    return table.select(*COLUMNS, *others)


def _write(table: pl.DataFrame, path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".labels-", delete=False) as file:
        try:
            if path.suffix.lower() == ".parquet":
                table.write_parquet(file)
            else:
                table.write_csv(file)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _summary(
    path: Path, users: pl.DataFrame, labelled: pl.DataFrame, counts: pl.DataFrame, notes: list[str]
) -> Labels:
    if labelled.is_empty():
        notes.append("no user has both a photo and a kept swipe: the label table has no ratios")
    kept = counts.filter(pl.col("reason") == "kept")

    def total(frame: pl.DataFrame) -> int:
        return int(frame["n"].sum())

    of_user, of_label = (t["gender"].fill_null(swipes.UNKNOWN) for t in (users, labelled))
    genders = sorted(users["gender"].drop_nulls().unique())
    others = {*counts["from"], *counts["to"], *of_user} - {*genders}
    groups = {}
    for gender in [*genders, *sorted(others, key=lambda name: (name == swipes.UNKNOWN, name))]:
        members = users.filter(of_user == gender)
        groups[gender] = GenderCounts(
            users=members.height,
            users_with_photo=members.height - members["photo"].null_count(),
            users_labelled=int((of_label == gender).sum()),
            swipes_made=total(counts.filter(pl.col("from") == gender)),
            swipes_made_kept=total(kept.filter(pl.col("from") == gender)),
            swipes_received=total(counts.filter(pl.col("to") == gender)),
            swipes_received_kept=total(kept.filter(pl.col("to") == gender)),
        )
    senders = [name for name in groups if name != swipes.UNKNOWN]
    cells = {(row["from"], row["to"]): row["likes"] / row["n"] for row in kept.to_dicts()}
    return Labels(
        path=path,
        users=users.height,
        users_with_photo=users.height - users["photo"].null_count(),
        users_labelled=labelled.height,
        swipes=total(counts),
        swipes_kept=total(kept),
        removed={name: total(counts.filter(pl.col("reason") == name)) for name in REASONS},
        by_gender=groups,
        table1={s: {r: cells.get((s, r)) for r in genders} for s in senders},
        notes=tuple(notes),
    )
