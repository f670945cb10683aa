"""What a study compares: study.toml, parsed and checked."""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Self

import heads
from embedcache.errors import InputError, LabelsError
from heads.fitting.protocol import NAMES, Protocol
from heads.labels.build import build as build_labels

_NAME = re.compile(r"[\w .:+@-]{1,60}")
_FIT_OPTIONS = frozenset(
    ("epochs", "batch_size", "learning_rates", "optimizer", "members", "hidden", "loss")
    + ("weight_decay", "dropout", "patience", "start", "margin")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A column to predict. weight: a column of row weights, or None."""

    column: str
    weight: str | None = None
    task: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Some of the photos. faces: exactly so many; where: an SQL condition on the label table."""

    name: str
    faces: int | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A set of vectors. face: of face crops, hence fitted on one-face subsets only.

    label: its name in tables. path-like names are shown by their last part.
    """

    name: str
    label: str = ""
    face: bool | None = None

    @property
    def shown(self) -> str:
        return self.label or self.name.rstrip("/").rpartition("/")[2]

    @property
    def sees_face(self) -> bool:
        if self.face is not None:
            return self.face
        return self.name.startswith("facenet:") or self.name.endswith("@face")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What study.toml says, checked. Paths are resolved from where the file lies."""

    folder: Path
    title: str = "Predicting photo popularity"
    note: str = ""  # shown on the page, where it says how it was made
    labels: str | None = None
    users: str | None = None
    swipes: str | None = None
    id_column: str = "user_id"
    photo_column: str = "photo"
    split_by: str | None = None
    scope: str | None = None
    seed: int = 0
    heads: tuple[str, ...] = ("all",)
    report_by: tuple[str, ...] = ()
    simulated: bool = False
    target: tuple[Target, ...] = ()
    subset: tuple[Subset, ...] = (Subset(name="ALL"),)
    backbone: tuple[Backbone, ...] = ()
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.users is None and self.swipes is None):
            raise LabelsError("a study begins with labels, or with users and swipes: name one")
        if self.labels is None and (self.users is None or self.swipes is None):
            raise LabelsError("a study that begins with the swipe log names both users and swipes")
        for kind, names in (
            ("target", [target.column for target in self.target]),
            ("subset", [subset.name for subset in self.subset]),
            ("backbone", [backbone.shown for backbone in self.backbone]),
        ):
            if not names:
                raise LabelsError(f"a study has at least one [[{kind}]]")
            if len(set(names)) < len(names):
                raise LabelsError(f"two of the study's [[{kind}]] go by one name: {names}")
            if bad := [name for name in names if not _NAME.fullmatch(name)]:
                raise LabelsError(
                    f"a {kind}'s name has 1 to 60 letters, digits, spaces or any of . : + @ - _; "
                    f"got {bad[0]!r}" + (". Give it a label" if kind == "backbone" else "")
                )
        if unknown := sorted(set(self.heads) - {"all", *NAMES}):
            raise LabelsError(f"no head {unknown[0]!r}; there are all, {', '.join(NAMES)}")
        if unknown := sorted(set(self.fit) - _FIT_OPTIONS):
            raise LabelsError(
                f"[fit] has no {unknown[0]!r}; it has {', '.join(sorted(_FIT_OPTIONS))}"
            )
        for subset in self.subset:
            if not any(self.fits_on(backbone, subset) for backbone in self.backbone):
                raise LabelsError(
                    f"no backbone fits subset {subset.name!r}: face vectors need faces = 1"
                )
        self.protocol()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Parse study.toml; LabelsError says which key is wrong."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LabelsError(
                f"no study at {path} ({error}): 'embedcache study --init' writes one"
            ) from None
        try:
            return cls.parse(tomllib.loads(text), folder=path.parent)
        except (tomllib.TOMLDecodeError, LabelsError) as error:
            raise LabelsError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, folder: Path) -> Self:
        """A study from the keys of study.toml."""
        values = dict(document)
        for name, kind in (("target", Target), ("subset", Subset), ("backbone", Backbone)):
            if name in values:
                if not isinstance(values[name], list):
                    raise LabelsError(f"write [[{name}]], once per {name}")
                values[name] = tuple(_parse(kind, item, f"[[{name}]]") for item in values[name])
        for name in ("heads", "report_by"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        made: Self = _parse(cls, values | {"folder": folder}, "a study")
        return made

    def document(self) -> dict[str, Any]:
        """The study as JSON, files and local weights by their last part only."""
        told = asdict(self)
        del told["folder"]
        for name in ("labels", "users", "swipes"):
            told[name] = told[name] and Path(told[name]).name
        for backbone in told["backbone"]:
            kind, colon, rest = backbone["name"].partition(":")
            if colon and kind in ("local-dir", "facenet"):
                backbone["name"] = f"{kind}:{rest.rstrip('/').rpartition('/')[2]}"
        return {key: value for key, value in told.items() if value not in (None, {}, (), "")}

    def protocol(self) -> Protocol:
        """The fit's options, checked."""
        options = dict(self.fit)
        if isinstance(options.get("learning_rates"), list):
            options["learning_rates"] = tuple(options["learning_rates"])
        try:
            return Protocol(seed=self.seed, **options)
        except (TypeError, InputError) as error:
            raise LabelsError(f"[fit]: {error}") from None

    def fits_on(self, backbone: Backbone, subset: Subset) -> bool:
        """Face vectors exist for one-face photos only; the others are fitted on every subset."""
        return not backbone.sees_face or subset.faces == 1

    def label_table(self, out: str | os.PathLike[str]) -> Path:
        """The label table: the study's own, or made from the swipe log (once per its content)."""
        if self.labels is not None:
            return self.folder / self.labels
        users, swipes = self.folder / str(self.users), self.folder / str(self.swipes)
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        made, told = out / "labels.csv", out / "labels.json"
        inputs = {"users": sha256(users), "swipes": sha256(swipes), "code": code()}
        kept = read_json(told)
        if kept is None or kept.get("inputs") != inputs or kept.get("table") != sha256(made):
            built = build_labels(users, swipes, made)
            document = built.document() | {"labels": made.name}
            publish(told, {"inputs": inputs, "table": sha256(made), "document": document})
        return made


def code() -> str:
    """sha256 of the source of this package: what other code made is made again, whatever changed.

    Coarse on purpose: a number that someone raises by hand is forgotten, and a fit takes seconds.
    """
    root = Path(heads.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def template(name: str) -> str:
    """The text of one of the files under heads/study/templates."""
    return resources.files("heads.study").joinpath("templates", name).read_text("utf-8")


def init(path: str | os.PathLike[str]) -> Path:
    """Write a commented study.toml; refuses to overwrite one."""
    path = Path(path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template("study.toml"))
    except FileExistsError:
        raise LabelsError(f"{path} exists: name another file, or edit it") from None
    except OSError as error:
        raise LabelsError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _parse(kind: type, values: Any, where: str) -> Any:
    """A dataclass from TOML values of the right types."""
    if not isinstance(values, dict):
        raise LabelsError(f"{where} is a table of keys; got {values!r}")
    known = {item.name: item.type for item in kind.__dataclass_fields__.values()}  # type: ignore[attr-defined]
    for name, value in values.items():
        if name not in known:
            raise LabelsError(f"{where} has no {name!r}; it has {', '.join(n for n in known)}")
        wanted = str(known[name])
        text = "str" in wanted and "tuple" not in wanted and "Mapping" not in wanted
        if (
            (text and not isinstance(value, str))
            or ("int" in wanted and type(value) is not int)
            or ("bool" in wanted and type(value) is not bool)
            or (
                name in ("heads", "report_by")
                and not (isinstance(value, tuple) and all(isinstance(v, str) for v in value))
            )
            or (name == "fit" and not isinstance(value, dict))
        ):
            raise LabelsError(f"{where}: {name} cannot be {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise LabelsError(f"{where}: {str(error).rpartition(') ')[2]}") from None


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def publish(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
    temporary.replace(path)
