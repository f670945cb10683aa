"""A simulated dating population with known truth. No person stands behind any row of it.

    write(folder, users=85_000, swipes=40_000_000)   users and swipes tables, statistically like
                                                     the paper's (Table 1, 42 : 58, photo changes)
    swipes(truth)                                    a swipe log for photos that exist (the demo)

Whatever leaves this module says so: every id begins with "sim", the user table carries the column
`simulated_truth` (which passes into the label table, where the study's page looks for it), and a
README stands beside the tables.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl

from embedcache import disk
from embedcache.errors import LabelsError
from embedcache.wording import counted

TRUTH = "simulated_truth"
GENDERS = ("F", "M")
# Sender (rows) to recipient (columns), F then M: Table 1 of the paper.
TABLE1 = np.array([[0.33, 0.24], [0.75, 0.31]])
# Section 3.4: users, users with a photo and swipes made (millions), F then M.
_USERS, _WITH_PHOTO, _MADE = (32, 53), (32, 44), (7.8, 32.0)
_OPPOSITE = 0.9  # the share of swipes that go to the other gender; the paper does not say
_SPREAD = 1.0  # standard deviation of a photo's appeal, in log-odds
_NEVER_CHANGED = 0.05
_CHANGED_AT = (1.5, 0.5)  # Beta law of a photo's age: leaves 11 of 40 swipes after the change
_START_MS, _SPAN_MS = 1_388_534_400_000, 63_072_000_000  # two years from 2014-01-01
_BATCH = 1_000_000
_SWIPED = {
    "sender_id": pl.String(),
    "sender_gender": pl.String(),
    "recipient_id": pl.String(),
    "liked": pl.UInt8(),
    "swiped_at": pl.Datetime("ms"),
}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What `write` wrote. `removed` is what each filter of `heads.labels` must remove from it."""

    users_path: Path
    swipes_path: Path
    users: int
    swipes: int
    seed: int
    removed: Mapping[str, int]

    def document(self) -> dict[str, Any]:
        return {
            "simulated": True,
            "users_path": str(self.users_path),
            "swipes_path": str(self.swipes_path),
            "users": self.users,
            "swipes": self.swipes,
            "seed": self.seed,
            "to_be_removed": dict(self.removed),
        }

    def __str__(self) -> str:
        return (
            f"SIMULATED: {counted(self.users, 'user')} and {counted(self.swipes, 'swipe')} "
            f"(seed {self.seed}); "
            "no row is about a real person\n"
            f"wrote {self.users_path}\nwrote {self.swipes_path}"
        )


@dataclass(frozen=True, slots=True)
class _Population:
    """One row per user. `chance[s, i]`: that a sender of gender s likes user i's photo now."""

    gender: Ints
    has_photo: npt.NDArray[np.bool_]
    changed_ms: Ints  # -1: never
    chance: Floats
    chance_before: Floats
    seen: Floats  # relative rate of swipes received
    active: Floats  # relative rate of swipes made

    @property
    def truth(self) -> Floats:
        """The like ratio that endless swipes on the present photo would give."""
        share = _sender_shares()[:, self.gender]
        found: Floats = (share * self.chance).sum(0) / share.sum(0)
        return found


def write(
    folder: str | os.PathLike[str],
    *,
    users: int = 85_000,
    swipes: int = 40_000_000,
    seed: int = 0,
    suffix: str = ".csv",
    violations: int = 0,
) -> Simulation:
    """Write users and swipes tables of any size, streaming, in bounded memory.

    users, swipes: rows in the tables, before any filter. The defaults are the paper's size and
        leave about 76,000 users with a photo (42 : 58) and 11 million swipes.
    suffix: ".csv" or ".parquet".
    violations: so many each of swipes on unknown users, on oneself, without a time, and of copies
        of other swipes, planted on top of `swipes`.
    Photos are named and do not exist. Their true like ratio stands in `simulated_truth`; before a
    user's last photo change another photo, of another appeal, was swiped.
    """
    if users < 10 or swipes < 1 or not 0 <= violations <= swipes:
        raise LabelsError(
            "a simulation has at least 10 users, 1 swipe and no more violations than swipes; got "
            f"users={users}, swipes={swipes}, violations={violations}"
        )
    if suffix not in (".csv", ".parquet"):
        raise LabelsError(f"a simulation is written as .csv or .parquet; got {suffix!r}")
    folder = Path(folder)
    disk.make_folder(folder)
    population = _population(users, np.random.default_rng([seed, 0]))
    users_path, swipes_path = folder / f"users{suffix}", folder / f"swipes{suffix}"
    table = _user_table(population)
    planted = ("unknown_recipient", "self_swipe", "undated", "duplicate")
    removed = {"no_photo": 0, "before_photo": 0} | dict.fromkeys(planted, violations)
    batches = _batches(population, swipes, violations, seed, removed)
    if suffix == ".csv":
        table.write_csv(users_path)
        with swipes_path.open("wb") as file:
            _write_csv(batches, file)
    else:
        table.write_parquet(users_path)
        _stream(batches).sink_parquet(swipes_path, engine="streaming")
    made = Simulation(
        users_path=users_path,
        swipes_path=swipes_path,
        users=users,
        swipes=swipes + 4 * violations,
        seed=seed,
        removed=removed,
    )
    (folder / "README").write_text(f"{made}\nMade by `embedcache simulate`.\n", encoding="utf-8")
    return made


def swipes(
    truth: pl.DataFrame, *, mean_swipes: float = 150.0, n_senders: int = 500, seed: int = 0
) -> pl.DataFrame:
    """Draw a swipe log for photos whose chance of a like is known.

    truth: columns user_id, probability (of a like, 0 to 1).
    mean_swipes: per photo, spread as on a social app (most photos are seen little, a few a lot);
        every photo gets at least one.
    Returns sender_id, sender_gender, recipient_id, liked; a sender swipes a photo once, so no
    photo gets more than n_senders.
    """
    chance = truth["probability"].cast(pl.Float64).to_numpy()
    if not (len(chance) and np.all((chance >= 0) & (chance <= 1))):
        raise LabelsError("simulated swipes need at least one photo and probabilities in 0 to 1")
    rng = np.random.default_rng(seed)
    n = 1 + rng.poisson(rng.gamma(1.5, (mean_swipes - 1) / 1.5, len(chance)))
    n = np.minimum(n, n_senders)
    photo = np.repeat(np.arange(len(chance)), n)
    sender = np.concatenate([rng.permutation(n_senders)[:k] for k in n])
    gender = rng.integers(0, 2, n_senders)
    return pl.DataFrame(
        {
            "sender_id": _ids(sender, "sims"),
            "sender_gender": np.array(GENDERS)[gender[sender]],
            "recipient_id": truth["user_id"].gather(photo),
            "liked": (rng.random(len(photo)) < chance[photo]).astype(np.uint8),
        }
    )


def _sender_shares() -> Floats:
    """Of all swipes, the share from gender s (rows) to gender r (columns)."""
    made = np.array(_MADE) / sum(_MADE)
    to = np.array([[1 - _OPPOSITE, _OPPOSITE], [_OPPOSITE, 1 - _OPPOSITE]])
    shares: Floats = made[:, None] * to
    return shares


def _population(n: int, rng: np.random.Generator) -> _Population:
    gender = np.zeros(n, np.int64)
    gender[round(n * _USERS[0] / sum(_USERS)) :] = 1
    gender = rng.permutation(gender)
    has_photo = rng.random(n) < np.divide(_WITH_PHOTO, _USERS)[gender]
    changed = (_START_MS + rng.beta(*_CHANGED_AT, n) * _SPAN_MS).astype(np.int64)
    changed[rng.random(n) < _NEVER_CHANGED] = -1
    seen, active = rng.gamma(1.5, 1.0, (2, n))
    appeal = rng.normal(0, _SPREAD, n)
    earlier = 0.5 * appeal + np.sqrt(0.75) * rng.normal(0, _SPREAD, n)
    chance, before = np.empty((2, n)), np.empty((2, n))
    left = np.where(changed < 0, 1.0, 1 - (changed - _START_MS) / _SPAN_MS)
    for recipient in (0, 1):
        of = gender == recipient
        weight = seen[of] * left[of] * has_photo[of]
        for sender in (0, 1):
            level = _level(appeal[of], weight, TABLE1[sender, recipient])
            chance[sender, of] = _logistic(level + appeal[of])
            before[sender, of] = _logistic(level + earlier[of])
    return _Population(gender, has_photo, changed, chance, before, seen, active)


def _logistic(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def _level(appeal: Floats, weight: Floats, rate: float) -> float:
    """The log-odds at which the weighted mean chance of a like is `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        above = float((weight * (_logistic(middle + appeal) - rate)).sum()) > 0
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2


def _ids(numbers: Ints, prefix: str = "sim") -> pl.Series:
    return prefix + pl.Series(numbers).cast(pl.String).str.zfill(7)


def _user_table(population: _Population) -> pl.DataFrame:
    ids = _ids(np.arange(len(population.gender)))
    photo = pl.col("photo_updated_at")
    return pl.DataFrame(
        {
            "user_id": ids,
            "gender": np.array(GENDERS)[population.gender],
            "photo": "photos/" + ids + ".jpg",
            "photo_updated_at": population.changed_ms,
            TRUTH: population.truth,
            "has_photo": population.has_photo,
        }
    ).select(
        "user_id",
        "gender",
        pl.when("has_photo").then("photo").alias("photo"),
        pl.when((photo >= 0) & pl.col("has_photo")).then(photo.cast(pl.Datetime("ms"))),
        pl.when("has_photo").then(TRUTH).alias(TRUTH),
    )


def _batches(
    population: _Population, n: int, violations: int, seed: int, removed: dict[str, int]
) -> Iterator[pl.DataFrame]:
    """The log in order of time, a batch at a time; counts what the filters must remove."""
    n_batches = -(-n // _BATCH)
    pools = [_Pool(population, gender) for gender in (0, 1)]
    for batch in range(n_batches):
        rng = np.random.default_rng([seed, 1, batch])
        first, last = (n * b // n_batches for b in (batch, batch + 1))
        time = _START_MS + (
            _SPAN_MS * (first + np.sort(rng.random(last - first)) * (last - first)) / n
        )
        planted = violations * (batch + 1) // n_batches - violations * batch // n_batches
        yield _batch(population, pools, time.astype(np.int64), planted, rng, removed)


class _Pool:
    """Draws users of one gender in proportion to how much they are seen, or swipe."""

    def __init__(self, population: _Population, gender: int) -> None:
        self.members = np.flatnonzero(population.gender == gender)
        self.seen = np.cumsum(population.seen[self.members])
        self.active = np.cumsum(population.active[self.members])

    def draw(self, law: Floats, n: int, rng: np.random.Generator) -> Ints:
        at = np.searchsorted(law, rng.random(n) * law[-1])
        found: Ints = self.members[np.minimum(at, len(self.members) - 1)]
        return found


def _batch(
    population: _Population,
    pools: list[_Pool],
    time: Ints,
    planted: int,
    rng: np.random.Generator,
    removed: dict[str, int],
) -> pl.DataFrame:
    n = len(time)
    shares = _sender_shares().ravel()
    pair = rng.choice(4, n, p=shares)
    sender_gender, recipient_gender = pair // 2, pair % 2
    sender, recipient = np.empty(n, np.int64), np.empty(n, np.int64)
    for gender, pool in enumerate(pools):
        out, to = sender_gender == gender, recipient_gender == gender
        sender[out] = pool.draw(pool.active, int(out.sum()), rng)
        recipient[to] = pool.draw(pool.seen, int(to.sum()), rng)
    # Nobody is shown to themselves: such a draw goes to the next user of the same gender.
    for gender, pool in enumerate(pools):
        own = np.flatnonzero((sender == recipient) & (recipient_gender == gender))
        at = np.searchsorted(pool.members, recipient[own])
        recipient[own] = pool.members[(at + 1) % len(pool.members)]
    before = time < population.changed_ms[recipient]
    chance = np.where(
        before,
        population.chance_before[sender_gender, recipient],
        population.chance[sender_gender, recipient],
    )
    photo = population.has_photo[recipient]
    removed["no_photo"] += int((~photo).sum())
    removed["before_photo"] += int((before & photo).sum())
    frame = pl.DataFrame(
        {
            "sender_id": _ids(sender),
            "sender_gender": np.array(GENDERS)[sender_gender],
            "recipient_id": _ids(recipient),
            "liked": (rng.random(n) < chance).astype(np.uint8),
            "swiped_at": time,
        }
    ).with_columns(pl.col("swiped_at").cast(pl.Datetime("ms")))
    if not planted:
        return frame
    kept = np.flatnonzero(photo & ~before)
    dated = np.flatnonzero(photo & (population.changed_ms[recipient] >= 0))
    if not (len(kept) and len(dated)):
        raise LabelsError("too few swipes to plant violations in: ask for more swipes")
    some = [frame[rng.choice(rows, planted)] for rows in (kept, kept, dated, kept)]
    some[0] = some[0].with_columns(pl.lit("simdeleted").alias("recipient_id"))
    some[1] = some[1].with_columns(pl.col("recipient_id").alias("sender_id"))
    some[2] = some[2].with_columns(pl.lit(None, pl.Datetime("ms")).alias("swiped_at"))
    return pl.concat([frame, *some])


def _write_csv(batches: Iterator[pl.DataFrame], file: BinaryIO) -> None:
    for i, batch in enumerate(batches):
        batch.write_csv(file, include_header=i == 0, datetime_format="%Y-%m-%dT%H:%M:%S%.3f")


def _stream(batches: Iterator[pl.DataFrame]) -> pl.LazyFrame:
    def source(
        columns: list[str] | None, _predicate: Any, _n_rows: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for batch in batches:
            yield batch.select(columns) if columns else batch

    return pl.io.plugins.register_io_source(source, schema=_SWIPED)
