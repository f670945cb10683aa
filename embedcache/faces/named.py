"""The detectors that can be asked for by name.

A detector's document is the subject of its faces and its digest is part of the spec of a crop, so
faces of two detectors never mix.
"""

from collections.abc import Iterable
from pathlib import Path

from embedcache.errors import InputError
from embedcache.faces import blazeface
from embedcache.faces.detector import VERSION, Detector

DEFAULT = "mtcnn"
VERSIONS = {"mtcnn": VERSION, "blazeface": str(blazeface.DOCUMENT["detector"])}
"""What each name stands for, as its document says."""


def load(name: str, device: str = "cpu") -> Detector | blazeface.BlazeFace:
    """The detector of a name. Raises InputError for an unknown one, WeightsError where its
    package is not installed."""
    check(name)
    return blazeface.BlazeFace() if name == "blazeface" else Detector(device)


def check(name: str) -> None:
    """InputError for a name that is no detector's."""
    if name not in VERSIONS:
        raise InputError(f"no face detector is called {name!r}; there are {', '.join(VERSIONS)}")


def name_of(digest: str) -> str:
    """The detector whose digest is part of a spec. MTCNN for an unknown one: its digest follows
    from its weights, and is compared when it is loaded."""
    return "blazeface" if digest == blazeface.digest() else DEFAULT


def one_of(digests: Iterable[str]) -> str:
    """The detector of several specs, by its digests; InputError where they have two."""
    names = sorted({name_of(digest) for digest in digests})
    if len(names) > 1:
        raise InputError(f"a run has one face detector; these need {' and '.join(names)}")
    return names[0] if names else DEFAULT


def files(name: str, mtcnn: list[Path]) -> list[Path]:
    """The files that decide a detector's digest. mtcnn: those of MTCNN's weights."""
    path = blazeface.file()
    return mtcnn if name == DEFAULT else [path] if path else []
