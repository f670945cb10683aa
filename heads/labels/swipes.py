"""A swipe log of any size becomes counts: it is streamed once, then aggregated part by part.

    scan(path, needed, "swipe")     a CSV or Parquet table as a stream
    compact(path, users, out, ...)  the log as a few bytes per swipe, with the reason to drop it
    aggregate(out)                  counts per gender pair and reason, likes per recipient

`heads.labels` states the rules; this module applies them.
"""

from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from embedcache.errors import LabelsError
from embedcache.tables import MISSING
from embedcache.wording import counted

UNKNOWN = "unknown"
MAX_GENDERS = 20
ROWS_PER_PART = 4_000_000
_YES, _NO = ("1", "true", "1.0"), ("0", "false", "0.0")
_TIMES = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_MAX_UNIX_SECONDS = 1e11  # the year 5138: larger numbers are milliseconds


def scan(path: Path, needed: tuple[str, ...], kind: str) -> pl.LazyFrame:
    """A table as a stream, CSV values as the text they are."""
    if not path.is_file():
        raise LabelsError(f"no {kind} table at {path}: give a .csv or .parquet file")
    if path.stat().st_size == 0:
        raise LabelsError(f"{path} is empty: a {kind} table has {', '.join(needed)}")
    try:
        if path.suffix == ".parquet":
            frame = pl.scan_parquet(path, hive_partitioning=False, glob=False)
        else:
            frame = pl.scan_csv(path, infer_schema=False, glob=False)
        names = frame.collect_schema().names()
    except PolarsError as error:
        raise unreadable(path, error) from None
    if missing := [name for name in needed if name not in names]:
        raise LabelsError(
            f"{path} has no column {missing[0]!r}; a {kind} table needs {', '.join(needed)}. "
            f"It has {', '.join(names[:20])}"
        )
    return frame


def unreadable(path: Path, error: Exception) -> LabelsError:
    kind = "Parquet" if path.suffix == ".parquet" else "UTF-8 CSV"
    return LabelsError(f"{path} cannot be read as {kind}: {str(error).strip().splitlines()[0]}")


def text(name: str) -> pl.Expr:
    """A column of ids as trimmed text; empty is missing."""
    trimmed = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(trimmed != "").then(trimmed)


def known(name: str) -> pl.Expr:
    """A column as trimmed text; whatever spells a missing value is missing."""
    trimmed = text(name)
    return pl.when(~trimmed.str.to_lowercase().is_in(list(MISSING))).then(trimmed)


def time(frame: pl.LazyFrame, name: str, path: Path) -> pl.Expr:
    """An expression that reads `name` as UTC microseconds; null where there is no (good) time."""
    kind = frame.collect_schema()[name]
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is None:
            return pl.col(name)
        return pl.col(name).dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if kind == pl.Date:
        return pl.col(name).cast(pl.Datetime("us"))
    if kind.is_numeric():
        return _unix(pl.col(name).cast(pl.Float64))
    words = known(name).str.replace("T", " ", literal=True).str.strip_suffix("Z")
    try:
        sample = frame.select(words).drop_nulls().head(1000).collect().to_series()
    except PolarsError as error:
        raise unreadable(path, error) from None
    ways = [words.str.to_datetime(way, time_unit="us", strict=False) for way in _TIMES]
    ways[1] = ways[1].dt.replace_time_zone(None)
    ways.append(_unix(words.cast(pl.Float64, strict=False)))
    read = sample.to_frame(name).select(way.alias(str(i)) for i, way in enumerate(ways))
    missing = [read[str(i)].null_count() for i in range(len(ways))]
    best = missing.index(min(missing))
    if missing[best]:
        raise _bad_time(path, name, sample.filter(read[str(best)].is_null())[0])
    return ways[best]


def _unix(seconds: pl.Expr) -> pl.Expr:
    known = pl.when(seconds.abs() < _MAX_UNIX_SECONDS).then(seconds)
    return (known * 1e6).round().cast(pl.Int64).cast(pl.Datetime("us"))


def refuse_bad_times(frame: pl.LazyFrame, name: str, path: Path) -> None:
    bad = frame.filter(known(name).is_not_null() & pl.col("_changed").is_null())
    found = bad.select(text(name)).head(1).collect().to_series()
    if len(found):
        raise _bad_time(path, name, found[0])


def _bad_time(path: Path, name: str, value: str) -> LabelsError:
    return LabelsError(
        f"{path}: {name} {value!r} is not a time; write ISO 8601 (2024-05-31T18:00:00) or Unix "
        "seconds, the same way in every row"
    )


def compact(path: Path, users: pl.DataFrame, out: Path, notes: list[str]) -> None:
    """Stream the log into (recipient u4, sender u8, time i8, liked u1, genders, reason) rows."""
    swipes = scan(path, ("recipient_id", "liked"), "swipe")
    names = swipes.collect_schema().names()
    has_times = "swiped_at" in names
    notes += _lacking(path, names, dated=users["_changed"].null_count() < users.height)
    log = _with_senders(_with_users(swipes, users, path, has_times=has_times), users, names)
    # Senders are only compared, so 64 bits of their id are enough: among the swipes on one photo at
    # one time, two senders meet by chance less than once in 1e13 swipes.
    who_swiped = pl.col("_sender_id")
    rows = log.select(
        "recipient",
        pl.when(who_swiped.is_not_null()).then(who_swiped.hash(0)).alias("sender"),
        "time",
        "liked",
        pl.col("from").fill_null(UNKNOWN),
        pl.col("to").fill_null(UNKNOWN),
        _reason().alias("reason"),
    )
    try:
        rows.sink_parquet(out, compression="lz4", maintain_order=False, engine="streaming")
    except PolarsError as error:
        raise unreadable(path, error) from None
    _check(path, swipes, out)


def _lacking(path: Path, names: list[str], *, dated: bool) -> list[str]:
    """Notes on the columns that a log lacks.

    dated: whether the users have photo times; then the swipes need theirs.
    """
    notes = []
    if dated and "swiped_at" not in names:
        raise LabelsError(
            f"the users have photo_updated_at, but {path} has no column 'swiped_at' to tell which "
            "swipes are on the current photo: add it, or drop photo_updated_at from the user table"
        )
    if not dated:
        notes.append("no photo_updated_at: every swipe counts, also on earlier photos")
    if "sender_id" not in names:
        notes.append("no sender_id: self-swipes and duplicates cannot be recognised")
        if "sender_gender" not in names:
            notes.append("no sender_gender and no sender_id: Table 1 is empty")
    return notes


def _with_users(
    swipes: pl.LazyFrame, users: pl.DataFrame, path: Path, *, has_times: bool
) -> pl.LazyFrame:
    """Each swipe with its recipient's number, gender and photo."""
    names = swipes.collect_schema().names()
    who = users.lazy().select(
        "user_id",
        pl.col("gender").alias("to"),
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("recipient"),
        pl.col("photo").is_not_null().alias("_photo"),
        "_changed",
    )
    return swipes.select(
        text("recipient_id").alias("recipient_id"),
        _column(names, "sender_id").alias("_sender_id"),
        _liked().alias("liked"),
        (time(swipes, "swiped_at", path) if has_times else pl.lit(None))
        .cast(pl.Datetime("us"))
        .alias("time"),
        _column(names, "swiped_at").is_not_null().alias("_said"),
        _column(names, "sender_gender").alias("from"),
    ).join(who, left_on="recipient_id", right_on="user_id", how="left", maintain_order="none")


def _with_senders(log: pl.LazyFrame, users: pl.DataFrame, names: list[str]) -> pl.LazyFrame:
    """The sender's gender looked up among the users, where the log does not say it."""
    if "sender_gender" in names or "sender_id" not in names:
        return log
    senders = users.lazy().select("user_id", pl.col("gender").alias("_from"))
    joined = log.join(
        senders, left_on="_sender_id", right_on="user_id", how="left", maintain_order="none"
    )
    return joined.with_columns(pl.col("_from").alias("from"))


def _reason() -> pl.Expr:
    """Why a swipe does not count, null where it does; the first rule that matches decides."""
    rules = {
        "bad_liked": pl.col("liked").is_null(),
        "bad_time": pl.col("_said") & pl.col("time").is_null(),
        "unknown_recipient": pl.col("recipient").is_null(),
        "no_photo": ~pl.col("_photo"),
        "self_swipe": pl.col("_sender_id") == pl.col("recipient_id"),
        "undated": pl.col("_changed").is_not_null() & pl.col("time").is_null(),
        "before_photo": pl.col("time") < pl.col("_changed"),
    }
    found = pl.lit(None, pl.String)
    for name, rule in reversed(rules.items()):
        found = pl.when(rule).then(pl.lit(name)).otherwise(found)
    return found


def _liked() -> pl.Expr:
    """1, 0, or null for what is neither. (`replace_strict` would not stream: it holds the log.)"""
    words = pl.col("liked").cast(pl.String).str.strip_chars().str.to_lowercase()
    yes, no = (pl.any_horizontal([words == word for word in spelling]) for spelling in (_YES, _NO))
    one, zero = pl.lit(1, pl.UInt8), pl.lit(0, pl.UInt8)
    return pl.when(yes).then(one).when(no).then(zero)


def _column(names: list[str], name: str) -> pl.Expr:
    return known(name) if name in names else pl.lit(None, pl.String)


def _check(path: Path, swipes: pl.LazyFrame, compact: Path) -> None:
    """Refuse a log with no rows, impossible decisions or times, naming one of them."""
    found = pl.scan_parquet(compact)
    totals = found.group_by("reason").len().collect(engine="streaming")
    bad = dict(totals.iter_rows())
    if not bad:
        raise LabelsError(f"{path} has no rows below its header")
    if n := bad.get("bad_liked"):
        wrong = _liked().is_null()
        value = (
            swipes.filter(wrong).select(pl.col("liked").cast(pl.String)).head(1).collect().item()
        )
        raise LabelsError(
            f"{path}: {counted(n, 'swipe has', 'swipes have')} a 'liked' that is neither 0 nor 1, "
            "such as "
            f"{repr(value) if value else 'an empty one'}: correct or remove those rows"
        )
    if bad.get("bad_time"):
        wrong = known("swiped_at").is_not_null() & time(swipes, "swiped_at", path).is_null()
        raise _bad_time(
            path,
            "swiped_at",
            swipes.filter(wrong).select(text("swiped_at")).head(1).collect().item(),
        )
    senders = found.select(pl.col("from").unique()).collect(engine="streaming").height
    if senders > MAX_GENDERS:
        raise LabelsError(
            f"{path} has {senders:,} different sender genders: is 'sender_gender' the right column?"
        )


def aggregate(compact: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Counts per (from, to, reason) and likes and swipes per recipient, a part at a time."""
    log = pl.scan_parquet(compact)
    by = ["from", "to", "reason"]
    tally = [
        pl.len().cast(pl.Int64).alias("n"),
        pl.col("liked").cast(pl.Int64).sum().alias("likes"),
    ]
    counts = [log.filter(pl.col("reason").is_not_null()).group_by(by).agg(tally).collect()]
    ratios = []
    kept = log.filter(pl.col("reason").is_null())
    n_parts = 1 + kept.select(pl.len()).collect().item() // ROWS_PER_PART
    for part in range(n_parts):
        rows = kept.filter(pl.col("recipient") % n_parts == part).drop("reason").collect()
        named = rows.filter(pl.col("sender").is_not_null())
        once = named.unique(maintain_order=False)
        lost = _less(
            named.group_by("from", "to").agg(tally), once.group_by("from", "to").agg(tally)
        )
        once = pl.concat([once, rows.filter(pl.col("sender").is_null())])
        del rows, named
        counts.append(lost.select("from", "to", pl.lit("duplicate").alias("reason"), "n", "likes"))
        kept_counts = once.group_by("from", "to").agg(tally)
        counts.append(
            kept_counts.select("from", "to", pl.lit("kept").alias("reason"), "n", "likes")
        )
        ratios.append(once.group_by("recipient").agg(tally))
    total = pl.concat(counts).group_by(by).agg(pl.col("n").sum(), pl.col("likes").sum())
    return total, pl.concat(ratios)


def _less(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    joined = before.join(after, on=["from", "to"], how="left", suffix="_after")
    return joined.select(
        "from", "to", pl.col("n") - pl.col("n_after"), pl.col("likes") - pl.col("likes_after")
    )
