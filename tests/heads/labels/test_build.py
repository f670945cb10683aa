"""The label table against a slow, obvious computation, planted cases and users' mistakes."""

import csv
import statistics
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache.errors import LabelsError
from heads.labels import build as labels
from heads.labels import swipes

Row = dict[str, Any]
START = datetime(2015, 1, 1)


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def build(folder: Path, users: list[Row], log: list[Row], **options: bool) -> labels.Labels:
    users_path = write(folder / "users.csv", users)
    log_path = write(folder / "swipes.csv", log)
    return labels.build(users_path, log_path, folder / "labels.csv", **options)


def rows_of(made: labels.Labels) -> dict[str, Row]:
    with made.path.open(newline="") as file:
        return {row["user_id"]: row for row in csv.DictReader(file)}


def slow(users: list[Row], log: list[Row]) -> dict[str, Any]:
    """The rules of `heads.labels`, one swipe at a time, in plain Python."""
    by_id = {user["user_id"]: user for user in users}
    removed = dict.fromkeys(labels.REASONS, 0)
    seen: set[tuple[str, ...]] = set()
    likes: dict[str, list[int]] = {}
    cells: dict[tuple[str, str], list[int]] = {}
    for swipe in log:
        recipient, whole = by_id.get(swipe["recipient_id"]), tuple(swipe[name] for name in log[0])
        if recipient is None:
            removed["unknown_recipient"] += 1
        elif not recipient["photo"]:
            removed["no_photo"] += 1
        elif swipe["sender_id"] == swipe["recipient_id"]:
            removed["self_swipe"] += 1
        elif recipient["photo_updated_at"] and not swipe["swiped_at"]:
            removed["undated"] += 1
        elif recipient["photo_updated_at"] and swipe["swiped_at"] < recipient["photo_updated_at"]:
            removed["before_photo"] += 1
        elif swipe["sender_id"] and whole in seen:
            removed["duplicate"] += 1
        else:
            seen.add(whole)
            likes.setdefault(swipe["recipient_id"], []).append(int(swipe["liked"]))
            pair = (swipe["sender_gender"], recipient["gender"])
            cells.setdefault(pair, []).append(int(swipe["liked"]))
    return {
        "removed": removed,
        "likes": likes,
        "table1": {pair: statistics.fmean(given) for pair, given in cells.items()},
    }


def stamp(hours: int) -> str:
    return (START + timedelta(hours=hours)).isoformat()


people = st.lists(
    st.fixed_dictionaries(
        {
            "gender": st.sampled_from(["F", "M", ""]),
            "photo": st.sampled_from(["a.jpg", "b/c.jpg", ""]),
            "photo_updated_at": st.one_of(st.just(""), st.integers(0, 5).map(stamp)),
        }
    ),
    min_size=1,
    max_size=6,
)
events = st.lists(
    st.fixed_dictionaries(
        {
            "sender_id": st.sampled_from(["u0", "u1", "u2", "x", ""]),
            "sender_gender": st.sampled_from(["F", "M", ""]),
            "recipient_id": st.sampled_from(["u0", "u1", "u2", "u5", "ghost"]),
            "liked": st.sampled_from(["0", "1"]),
            "swiped_at": st.one_of(st.just(""), st.integers(0, 5).map(stamp)),
        }
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(people=people, log=events, parts=st.sampled_from([3, 4_000_000]))
def test_every_count_ratio_and_rate_equals_the_slow_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, people: list[Row], log: list[Row], parts: int
) -> None:
    monkeypatch.setattr(swipes, "ROWS_PER_PART", parts)
    users = [{"user_id": f"u{i}", **person} for i, person in enumerate(people)]
    made = build(tmp_path, users, log)
    truth = slow(users, log)
    assert made.removed == truth["removed"]
    assert made.swipes == len(log)
    assert made.swipes_kept + sum(made.removed.values()) == len(log)
    rows = rows_of(made)
    assert set(rows) == set(truth["likes"])
    for user_id, given_likes in truth["likes"].items():
        assert float(rows[user_id]["like_ratio"]) == statistics.fmean(given_likes)
        assert int(rows[user_id]["swipes"]) == len(given_likes)
    for sender, row in made.table1.items():
        for recipient, rate in row.items():
            assert rate == pytest.approx(truth["table1"].get((sender, recipient)), abs=1e-12)
    groups = made.by_gender.values()
    assert sum(group.users for group in groups) == made.users == len(users)
    assert sum(group.users_with_photo for group in groups) == made.users_with_photo
    assert sum(group.users_labelled for group in groups) == made.users_labelled == len(rows)
    assert sum(group.swipes_made for group in groups) == made.swipes
    assert sum(group.swipes_received_kept for group in groups) == made.swipes_kept
    ratio = {user_id: statistics.fmean(votes) for user_id, votes in truth["likes"].items()}
    for user in users:
        if user["user_id"] in ratio:
            same = [
                ratio[u["user_id"]]
                for u in users
                if u["gender"] == user["gender"] and u["user_id"] in ratio
            ]
            good = ratio[user["user_id"]] > statistics.median(same)
            assert rows[user["user_id"]]["good"] == str(int(good))


USERS = [
    {"user_id": "ann", "gender": "F", "photo": "p/ann.jpg", "photo_updated_at": stamp(10)},
    {"user_id": "bob", "gender": "M", "photo": "p/bob.jpg", "photo_updated_at": ""},
    {"user_id": "cat", "gender": "F", "photo": "", "photo_updated_at": ""},
]


def swipe(sender: str, recipient: str, liked: int, hours: int | None = 12) -> Row:
    gender = {"ann": "F", "bob": "M", "cat": "F"}.get(sender, "M")
    return {
        "sender_id": sender,
        "sender_gender": gender,
        "recipient_id": recipient,
        "liked": liked,
        "swiped_at": "" if hours is None else stamp(hours),
    }


GOOD = [swipe("bob", "ann", 1), swipe("dan", "ann", 0), swipe("ann", "bob", 1)]


@pytest.mark.parametrize(
    ("reason", "planted"),
    [
        ("unknown_recipient", swipe("bob", "nobody", 1)),
        ("no_photo", swipe("bob", "cat", 1)),
        ("self_swipe", swipe("ann", "ann", 1)),
        ("undated", swipe("eve", "ann", 1, None)),
        ("before_photo", swipe("eve", "ann", 1, 9)),
        ("duplicate", GOOD[0]),
    ],
)
def test_each_filter_removes_exactly_what_was_planted(
    tmp_path: Path, reason: str, planted: Row
) -> None:
    clean = build(tmp_path, USERS, GOOD)
    table = clean.path.read_bytes()
    made = build(tmp_path, USERS, [planted, *GOOD, planted, planted])
    assert made.removed == {**dict.fromkeys(labels.REASONS, 0), reason: 3}
    assert made.swipes_kept == clean.swipes_kept == 3
    assert made.path.read_bytes() == table
    assert made.table1 == clean.table1 == {"F": {"F": None, "M": 1.0}, "M": {"F": 0.5, "M": None}}


def test_a_swipe_at_the_moment_of_the_photo_change_counts(tmp_path: Path) -> None:
    made = build(tmp_path, USERS, [swipe("eve", "ann", 1, 10), swipe("eve", "ann", 0, 11)])
    assert made.swipes_kept == 2


def test_a_second_decision_at_another_time_counts_as_an_event(tmp_path: Path) -> None:
    made = build(tmp_path, USERS, [swipe("bob", "ann", 1, 12), swipe("bob", "ann", 1, 13)])
    assert made.swipes_kept == 2


@pytest.mark.parametrize(
    ("changed", "before", "after"),
    [
        ("2024-05-31", "2024-05-30", "2024-05-31"),
        ("2024-05-31T10:00:00Z", "2024-05-31T11:59:59+02:00", "2024-05-31T12:00:00+02:00"),
        ("2024-05-31 10:00:00.5", "1717149600.4", "1717149600.5"),
        ("2024-05-31 10:00", "1717149599", "1717149600"),
    ],
)
def test_times_are_compared_as_instants_however_they_are_written(
    tmp_path: Path, changed: str, before: str, after: str
) -> None:
    users = [{"user_id": "ann", "gender": "F", "photo": "a.jpg", "photo_updated_at": changed}]
    log = [{"recipient_id": "ann", "liked": 1, "swiped_at": at} for at in (before, after)]
    made = build(tmp_path, users, log)
    assert made.removed["before_photo"] == 1
    assert made.swipes_kept == 1


def test_several_rows_of_a_user_are_a_history_and_the_last_photo_counts(tmp_path: Path) -> None:
    history = [
        {**USERS[0], "photo": "new.jpg", "photo_updated_at": stamp(20)},
        {**USERS[0], "photo": "old.jpg", "photo_updated_at": stamp(5)},
        {**USERS[0], "photo": "first.jpg", "photo_updated_at": ""},
    ]
    made = build(tmp_path, history, [swipe("bob", "ann", 1, 19), swipe("bob", "ann", 0, 20)])
    assert made.users == 1
    assert rows_of(made)["ann"]["photo"] == "new.jpg"
    assert made.removed["before_photo"] == 1


def test_unknown_sender_gender_counts_in_the_ratio_and_not_in_table_1(tmp_path: Path) -> None:
    log = [{**GOOD[0], "sender_gender": ""}, {**swipe("eve", "ann", 0), "sender_gender": "M"}]
    made = build(tmp_path, USERS, log)
    assert float(rows_of(made)["ann"]["like_ratio"]) == 0.5
    assert made.table1["M"]["F"] == 0.0
    assert swipes.UNKNOWN not in made.table1
    assert made.by_gender["unknown"].swipes_made_kept == 1


def test_without_a_sender_gender_column_senders_are_looked_up(tmp_path: Path) -> None:
    log = [{k: v for k, v in row.items() if k != "sender_gender"} for row in GOOD]
    made = build(tmp_path, USERS, log)
    assert made.table1 == {"F": {"F": None, "M": 1.0}, "M": {"F": 1.0, "M": None}}
    assert made.by_gender["unknown"].swipes_made == 1  # dan is in no user table


def test_the_simple_form_needs_neither_senders_nor_times(tmp_path: Path) -> None:
    users = [{k: v for k, v in user.items() if k != "photo_updated_at"} for user in USERS]
    made = build(tmp_path, users, [{"recipient_id": "ann", "liked": i % 2} for i in range(4)])
    assert made.swipes_kept == 4
    assert float(rows_of(made)["ann"]["like_ratio"]) == 0.5
    assert any("every swipe" in note for note in made.notes)
    assert any("duplicates cannot be recognised" in note for note in made.notes)
    assert str(made.path) in str(made)


def test_photo_paths_are_relative_to_the_label_table(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "runs" / "one"
    data.mkdir()
    elsewhere.mkdir(parents=True)
    linked = tmp_path / "link"
    linked.symlink_to(elsewhere)
    users = [USERS[0], {**USERS[1], "photo": "/srv/bob.jpg"}]
    users_path, log_path = write(data / "users.csv", users), write(data / "swipes.csv", GOOD)
    (data / "p").mkdir()
    (data / "p" / "ann.jpg").write_bytes(b"ann")
    for folder in (data, elsewhere, linked):
        made = labels.build(users_path, log_path, folder / "labels.csv")
        rows = rows_of(made)
        assert (folder / rows["ann"]["photo"]).read_bytes() == b"ann"
        assert rows["bob"]["photo"] == "/srv/bob.jpg"


def test_other_user_columns_are_copied(tmp_path: Path) -> None:
    users = [{**user, "code": f"00{i}", "n": "n", "likes": ""} for i, user in enumerate(USERS)]
    made = build(tmp_path, users, GOOD)
    first = rows_of(made)["ann"]
    assert list(first)[: len(labels.COLUMNS)] == list(labels.COLUMNS)
    assert (first["code"], first["n"], first["likes"]) == ("000", "n", "")


def test_parquet_in_and_out_gives_the_same_labels_as_csv(tmp_path: Path) -> None:
    made = build(tmp_path, USERS, GOOD)
    users = pl.read_csv(tmp_path / "users.csv", try_parse_dates=True)
    log = pl.read_csv(tmp_path / "swipes.csv", try_parse_dates=True)
    users.write_parquet(tmp_path / "users.parquet")
    log.with_columns(pl.col("liked").cast(pl.Boolean)).write_parquet(tmp_path / "swipes.parquet")
    out = tmp_path / "labels.parquet"
    again = labels.build(tmp_path / "users.parquet", tmp_path / "swipes.parquet", out)
    assert again.table1 == made.table1
    columns = list(labels.COLUMNS)
    assert (
        pl.read_parquet(out)
        .select(columns)
        .equals(pl.read_csv(made.path).select(columns).cast({"swipes": pl.Int64, "good": pl.UInt8}))
    )


def test_users_without_a_kept_swipe_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    assert set(rows_of(build(tmp_path, USERS, GOOD[:1]))) == {"ann"}
    made = build(tmp_path, USERS, GOOD[:1], keep_unswiped=True)
    assert rows_of(made)["bob"]["like_ratio"] == ""
    assert rows_of(made)["bob"]["swipes"] == "0"
    assert made.users_labelled == 1


def test_a_failed_run_leaves_the_earlier_table_and_no_temporary_files(tmp_path: Path) -> None:
    made = build(tmp_path, USERS, GOOD)
    before = made.path.read_bytes()
    with pytest.raises(LabelsError):
        build(tmp_path, USERS, [{**GOOD[0], "liked": "yes"}])
    assert made.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"users.csv", "swipes.csv", "labels.csv"}


def without(name: str, rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != name} for row in rows]


@pytest.mark.parametrize(
    ("users", "log", "message"),
    [
        (without("gender", USERS), GOOD, "no column 'gender'"),
        (USERS, without("liked", GOOD), "no column 'liked'"),
        (USERS, without("swiped_at", GOOD), "no column 'swiped_at'"),
        (USERS, [*GOOD, {**GOOD[0], "liked": 3}], "1 swipe has a 'liked'.*'3'"),
        (USERS, [*GOOD, {**GOOD[0], "liked": ""}], "neither 0 nor 1, such as an empty one"),
        (USERS, [*GOOD, {**GOOD[0], "swiped_at": "May"}], "swiped_at 'May'"),
        (USERS, [{**GOOD[0], "swiped_at": "31/05/2024"}], "swiped_at '31/05/2024'"),
        (USERS, [{**GOOD[0], "swiped_at": "1717149600000"}], "swiped_at '1717149600000'"),
        ([{**USERS[0], "photo_updated_at": "soon"}], GOOD, "photo_updated_at 'soon'"),
        ([*USERS, USERS[0]], GOOD, "more than one row for user 'ann'"),
        ([{**USERS[0], "user_id": ""}], GOOD, "1 row without a user_id"),
        ([{**USERS[0], "swipes": "1"}], GOOD, "column 'swipes'.*rename"),
        (
            [{**USERS[0], "user_id": f"u{i}", "gender": f"g{i}"} for i in range(30)],
            GOOD,
            "30 different genders",
        ),
        (USERS, [{**GOOD[0], "sender_gender": f"g{i}"} for i in range(30)], "30 different sender"),
    ],
)
def test_a_users_mistake_is_one_message_that_names_it(
    tmp_path: Path, users: list[Row], log: list[Row], message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        build(tmp_path, users, log)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no swipe table"),
        (b"", "is empty"),
        (b"recipient_id,liked\n", "no rows"),
        (b"recipient_id,liked,swiped_at\nann,1,2015-01-02,extra\n", "cannot be read"),
        (b"recipient_id,liked,swiped_at\n\xff\xfe,1,2015-01-02\n", "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    users = write(tmp_path / "users.csv", without("photo_updated_at", USERS))
    log = tmp_path / "swipes.csv"
    if content is not None:
        log.write_bytes(content)
    with pytest.raises(LabelsError, match=message):
        labels.build(users, log, tmp_path / "labels.csv")


def test_a_byte_order_mark_and_empty_quotes_are_read_as_they_are_meant(tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_bytes(b'\xef\xbb\xbfuser_id,gender,photo\r\nann,F,a.jpg\r\n"b,c",M,""\r\n')
    log = write(tmp_path / "swipes.csv", [{"recipient_id": "ann", "liked": "true"}])
    made = labels.build(users, log, tmp_path / "labels.csv")
    assert (made.users, made.users_with_photo, made.swipes_kept) == (2, 1, 1)


@pytest.mark.real
def test_mebeauty_ratios_equal_the_slow_computation(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "data" / "mebeauty"
    made = labels.build(folder / "users.csv", folder / "swipes.csv", tmp_path / "labels.csv")
    with (folder / "users.csv").open(newline="") as file:
        users = [{**row, "photo_updated_at": ""} for row in csv.DictReader(file)]
    with (folder / "swipes.csv").open(newline="") as file:
        names = ("sender_id", "sender_gender", "recipient_id", "liked")
        log = [{**{n: row[n] for n in names}, "swiped_at": ""} for row in csv.DictReader(file)]
    truth = slow(users, log)
    rows = rows_of(made)
    assert made.removed == truth["removed"]
    assert made.removed["duplicate"] == 1573
    assert {u: float(r["like_ratio"]) for u, r in rows.items()} == {
        u: statistics.fmean(given_likes) for u, given_likes in truth["likes"].items()
    }
    assert all((tmp_path / row["photo"]).is_file() for row in rows.values())
