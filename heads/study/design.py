"""What a study compares: study.toml, parsed and checked."""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct

import heads
from embedcache import disk
from embedcache.errors import InputError, LabelsError
from embedcache.photos.rows import PHOTO_COLUMNS
from embedcache.spec import CROPS, split_layers
from embedcache.store.side_by_side import each_layer
from embedcache.tables import ID_COLUMNS, Sheet, open_sheet
from embedcache.wording import plain, reason
from heads.dataset.split import near_duplicates
from heads.documents import checked, read_json
from heads.fitting.protocol import FC_NAMES, NAMES, OPTIONS, Protocol, protocol_of
from heads.labels.build import build as build_labels

_NAME = re.compile(r"[\w .:+@-]{1,60}")
_PATHS = ("labels", "users", "swipes")
# The study names the seed for all its fits; the other two belong to the machine.
_WARM_ONLY = ("start", "margin", "patience", "halving_steps")
FOLDED_BELOW = 5000  # rows: fewer are judged by folds unless the study says otherwise
FOLDS = 5
_FIT_OPTIONS = tuple(sorted(set(OPTIONS) - {"seed", "memory_bytes", "device"}))
_MAX_MEMO_BYTES = 16 << 20


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column to predict. weight: a column of row weights, or None."""

    column: str
    weight: str | None = None
    task: str = "auto"


class Subset(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some of the photos. faces: exactly this number; where: SQL on the label table."""

    name: str
    faces: int | None = None
    where: str | None = None


class NamedBackbone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A set of vectors. face: of face crops, hence fitted on one-face subsets only.

    name: of a backbone, or several: their vectors stand side by side. NAME#LAYER,LAYER is several.
    label: its name in tables. path-like names are shown by their last part.
    """

    name: str | tuple[str, ...]
    label: str = ""
    face: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if isinstance(self.name, str) else self.name

    @property
    def shown(self) -> str:
        last = (name.rstrip("/").rpartition("/")[2] for name in self.names)
        return self.label or " + ".join(last).replace("#", " ").replace(",", " ")

    @property
    def sees_face(self) -> bool:
        if self.face is not None:
            return self.face
        plain = [split_layers(name)[0] for name in self.names]
        return any(
            name.startswith("facenet:") or name.rpartition("@")[2] in CROPS for name in plain
        )


class RatingsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who rated which photo how, a row each; the columns as `heads.taste.ratings` finds them."""

    ratings: str
    rater_column: str | None = None
    id_column: str | None = None
    rating_column: str | None = None


class StudyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of study.toml. note: shown on the page, under its title.

    protocols: how FC heads are fitted, a block of the tables each: "paper", from scratch, and
    "warm", from the linear head. id_column: "" for photo_id, user_id or id. folds: K, 0 for one
    split; by default 5 below 5,000 rows. keep_together: "near-duplicates", or with a cosine
    "near-duplicates:0.9": such photos stand on one side of every split. near_duplicates_by: the
    backbone that tells them; by default the first one of whole photos. taste: a table of single
    ratings or swipes with their viewers, on which a taste per viewer is tried.
    """

    title: str = "Predicting photo popularity"
    note: str = ""
    labels: str | None = None
    users: str | None = None
    swipes: str | None = None
    id_column: str = ""
    photo_column: str = "photo"
    split_by: str | None = None
    keep_together: str | None = None
    near_duplicates_by: str | None = None
    scope: str | None = None
    seed: int = 0
    heads: tuple[str, ...] = ("all",)
    report_by: tuple[str, ...] = ()
    simulated: bool = False
    protocols: tuple[Literal["paper", "warm"], ...] = ("paper", "warm")
    folds: int | None = None
    taste: str | RatingsTable | None = None
    target: tuple[Target, ...] = ()
    subset: tuple[Subset, ...] = (Subset(name="ALL"),)
    backbone: tuple[NamedBackbone, ...] = ()
    fit: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.users is None and self.swipes is None):
            raise LabelsError("a study needs either labels, or users and swipes")
        if self.labels is None and (self.users is None or self.swipes is None):
            raise LabelsError("a study on a swipe log needs both users and swipes")
        if unknown := sorted(set(self.heads) - {"all", *NAMES}):
            raise LabelsError(f"no head {unknown[0]!r}; choose from all, {', '.join(NAMES)}")
        self._check_names()
        for subset in self.subset:
            if not any(self.fits_on(backbone, subset) for backbone in self.backbone):
                raise LabelsError(
                    f"no backbone suits subset {subset.name!r}: face vectors need faces = 1"
                )
        if unknown := sorted(set(self.fit) - set(_FIT_OPTIONS)):
            raise LabelsError(f"[fit] has no {unknown[0]!r}; it has {', '.join(_FIT_OPTIONS)}")
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise LabelsError(f"protocols must name paper, warm or both; got {self.protocols}")
        if self.folds is not None and (self.folds < 0 or self.folds in (1, 2)):
            raise LabelsError(f"folds must be 3 or more, or 0 for one split; got {self.folds}")
        for name in self.protocols:
            self.protocol(name)
        if self.keep_together is not None:
            near_duplicates(self.keep_together)
        names = [name for one in self.backbone for name in one.names]
        if self.near_duplicates_by not in (None, *names):
            raise LabelsError(
                f"near_duplicates_by: the study has no backbone {self.near_duplicates_by}; it has "
                f"{', '.join(names)}"
            )

    def _check_names(self) -> None:
        for kind, names in (
            ("target", [target.column for target in self.target]),
            ("subset", [subset.name for subset in self.subset]),
            ("backbone", [backbone.shown for backbone in self.backbone]),
        ):
            if not names:
                raise LabelsError(f"a study needs at least one [[{kind}]]")
            if kind == "backbone" and not all(one.names for one in self.backbone):
                raise LabelsError("a backbone of the study has an empty list of names")
            if kind == "backbone":
                self._refuse_repeats()
            if len(set(names)) < len(names):
                raise LabelsError(f"two of the study's [[{kind}]] have the same name: {names}")
            if bad := [name for name in names if not _NAME.fullmatch(name)]:
                raise LabelsError(
                    f"a {kind}'s name has 1 to 60 letters, digits, spaces or any of . : + @ - _; "
                    f"got {bad[0]!r}" + (". Give it a label" if kind == "backbone" else "")
                )

    def _refuse_repeats(self) -> None:
        """LabelsError where one backbone of the study holds the same vectors twice."""
        for backbone in self.backbone:
            each = each_layer(backbone.names)
            if twice := next((name for name in each if each.count(name) > 1), None):
                raise LabelsError(
                    f"backbone {backbone.shown!r} of the study names {twice!r} twice: name it once"
                )

    def protocol(self, name: str) -> Protocol:
        """The fit's options on top of a protocol, checked. Some belong to the warm one alone."""
        options = {k: v for k, v in self.fit.items() if name == "warm" or k not in _WARM_ONLY}
        try:
            return protocol_of(options | {"seed": self.seed}, name=name)
        except InputError as error:
            raise LabelsError(f"[fit]: {error}") from None

    def protocols_run(self) -> tuple[str, ...]:
        """The protocols to fit by: they differ in FC heads, so that without any one is enough."""
        trained = {"all", *FC_NAMES} & set(self.heads)
        return self.protocols if trained else self.protocols[:1]

    def folds_for(self, n_rows: int) -> int | None:
        """K for a fit of so many rows, or None for one split."""
        if self.folds is None:
            return FOLDS if n_rows < FOLDED_BELOW else None
        return self.folds or None

    @property
    def rated(self) -> RatingsTable | None:
        """The table of single ratings, if there is one."""
        return RatingsTable(ratings=self.taste) if isinstance(self.taste, str) else self.taste

    def fits_on(self, backbone: NamedBackbone, subset: Subset) -> bool:
        """Face vectors exist for one-face photos only; the others are fitted on every subset."""
        return not backbone.sees_face or subset.faces == 1


class Study(StudyFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """study.toml, and the folder where it lies: its paths are resolved from there."""

    folder: Path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Parse study.toml; LabelsError says which key is wrong."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise LabelsError(
                f"no study at {path}: 'embedcache study {path} --init' writes one"
            ) from None
        except IsADirectoryError:
            raise LabelsError(f"{path} is a folder; a study is a .toml file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise LabelsError(f"cannot read {path}: {reason(error)}") from None
        try:
            return cls.parse(tomllib.loads(text), folder=path.parent)
        except (tomllib.TOMLDecodeError, LabelsError) as error:
            raise LabelsError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, folder: Path) -> Self:
        """A study from the keys of study.toml."""
        keys = checked(dict(document), StudyFile, where="study", error=LabelsError)
        return cls(folder=folder, **{name: getattr(keys, name) for name in keys.__struct_fields__})

    def document(self) -> dict[str, Any]:
        """The study as JSON, files and local weights by their last part only."""
        keys = {name: getattr(self, name) for name in StudyFile.__struct_fields__}
        found: dict[str, Any] = msgspec.to_builtins(keys)
        for name in _PATHS:
            found[name] = found[name] and Path(found[name]).name
        if self.rated is not None:
            name = Path(self.rated.ratings).name
            named = msgspec.to_builtins(msgspec.structs.replace(self.rated, ratings=name))
            named = {key: value for key, value in named.items() if value is not None}
            found["taste"] = name if isinstance(self.taste, str) else named
        for backbone, own in zip(found["backbone"], self.backbone, strict=True):
            names = [_without_folders(name) for name in own.names]
            backbone["name"] = names[0] if isinstance(own.name, str) else names
        return {key: value for key, value in found.items() if value not in (None, {}, (), [], "")}

    def label_table(self, out: str | os.PathLike[str]) -> Path:
        """The label table: the study's own, or made from the swipe log (once per its content)."""
        if self.labels is not None:
            return self.folder / self.labels
        users, swipes = self.folder / str(self.users), self.folder / str(self.swipes)
        out = Path(out)
        disk.make_folder(out)
        made, memo = out / "labels.csv", out / "labels.json"
        inputs = {"users": sha256(users), "swipes": sha256(swipes), "code": code()}
        kept = read_labels_memo(memo)
        if kept is None or kept.inputs != inputs or kept.table != sha256(made):
            built = build_labels(users, swipes, made)
            document = built.document() | {"labels": made.name}
            fresh = LabelsMemo(inputs=inputs, table=sha256(made), document=document)
            disk.replace(memo, msgspec.json.encode(fresh))
        return made


class LabelsMemo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """labels.json: what a study's labels.csv was made from.

    inputs: sha256 of users, swipes and code. table: sha256 of labels.csv. document: the counts that
    `embedcache labels` prints.
    """

    inputs: dict[str, str]
    table: str
    document: dict[str, Any]


def read_labels_memo(path: Path) -> LabelsMemo | None:
    """The memo, or None where there is none that can be used."""
    try:
        found = read_json(path, limit=_MAX_MEMO_BYTES, error=LabelsError)
        return checked(found, LabelsMemo, where=path, error=LabelsError)
    except (OSError, LabelsError):
        return None


def _without_folders(name: str) -> str:
    """A backbone's name with the last part of its path only."""
    kind, colon, rest = name.partition(":")
    if not colon or kind not in ("local-dir", "facenet"):
        return name
    return f"{kind}:{rest.rstrip('/').rpartition('/')[2]}"


def code() -> str:
    """sha256 of the source of this package, its rooms included: a fit by other code is refitted.

    Coarse on purpose: a version number that someone raises by hand is easily forgotten, and a fit
    takes seconds.
    """
    root = Path(heads.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def template(name: str) -> str:
    """The text of one of the files under heads/study/templates."""
    return resources.files("heads.study").joinpath("templates", name).read_text("utf-8")


def demo(networks: Mapping[str, str], *, notes: Iterable[str]) -> str:
    """The demo's study, with a row for each network (label: name) and notes for its page."""
    rows = [f'\n[[backbone]]\nname = "{name}"\nlabel = "{k}"\n' for k, name in networks.items()]
    return f'note = "{" ".join(notes)}"\n' + template("demo.toml") + "".join(rows)


def init(path: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None) -> Path:
    """Write a commented study.toml; refuses to overwrite one.

    labels: a label table, with which the study begins; without one it begins with a swipe log.
    """
    path = Path(path)
    text = template("study.toml")
    if labels is not None:
        text = _of_labels(text, open_sheet(labels, error=LabelsError, kind="label table"), path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise LabelsError(f"{path} exists: name another file, or edit it") from None
    except OSError as error:
        raise LabelsError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _of_labels(text: str, sheet: Sheet, path: Path) -> str:
    """The template for a label table: it comes first, and its first label is the target."""
    others = [name for name in sheet.names if name not in (*ID_COLUMNS, *PHOTO_COLUMNS)]
    if not others:
        raise LabelsError(f"{sheet.path} has no column but ids and photos: nothing to predict")
    place = Path(os.path.relpath(sheet.path, path.parent)).as_posix()
    begin = f"labels = {json.dumps(place)}\n# its columns: {plain(', '.join(sheet.names))}\n"
    target = (
        f'[[target]]\ncolumn = {json.dumps(others[0])}\n# weight = "COLUMN"        '
        "# how much each row counts\n\n"
    )
    title = f"title = {json.dumps(f'Predicting {others[0]}')}\n\n"
    for start, end, part in (
        ("title = ", "# Begin", title),
        ("# Begin with the raw log", "# id_column", begin),
        ("[[target]]", "[[subset]]", target),
        ("report_by", "# simulated", '# report_by = ["COLUMN"]   # error by group\n'),
        ("# [[subset]]               # any condition", "[[backbone]]", ""),
    ):
        before, _, rest = text.partition(start)
        text = before + part + end + rest.partition(end)[2]
    return text


def sha256(path: Path) -> str:
    """The sha256 of a file in hex, "" where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
