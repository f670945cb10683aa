"""The names of backbones, parsed: `NAME`, `NAME@face`, `local-dir:FOLDER`, `facenet:WEIGHTS`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from embedcache.backbones import weights
from embedcache.errors import WeightsError

DEFAULT = "inception_v3.tf_in1k"


@dataclass(frozen=True, slots=True)
class Name:
    """A backbone as a user writes it.

    source: "timm", "hf-hub", "local-dir" or "facenet".
    where: the model's name, the hub's id, or a path.
    face: whether the face crop is wanted.
    """

    source: str
    where: str
    face: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SOURCE:]WHERE[@face]`; WeightsError for anything else."""
        body, face = (text[: -len("@face")], True) if text.endswith("@face") else (text, False)
        source, colon, where = body.partition(":")
        if not colon:
            source, where = "timm", body
        if source not in ("timm", "hf-hub", "local-dir", "facenet") or not where:
            raise WeightsError(
                f"no such backbone: {text!r}. Give a timm name (inception_v3.tf_in1k), "
                "hf-hub:OWNER/MODEL, local-dir:FOLDER, facenet:vggface2, facenet:casia-webface or "
                "facenet:FILE, with @face at the end for the face crop."
            )
        return cls(source, where, face or source == "facenet")

    @property
    def recorded(self) -> str:
        """The name that a cache keeps: without the folders in front, which are this machine's."""
        return self._written(Path(self.where).resolve().name if self._is_path else self.where)

    @property
    def place(self) -> str:
        """The name with its path made absolute, so that it can be loaded from any folder."""
        return self._written(str(Path(self.where).resolve()) if self._is_path else self.where)

    @property
    def _is_path(self) -> bool:
        named = self.source == "facenet" and self.where in weights.FACENET_FILES
        return self.source in ("local-dir", "facenet") and not named

    def _written(self, where: str) -> str:
        text = where if self.source == "timm" else f"{self.source}:{where}"
        return f"{text}@face" if self.face and self.source != "facenet" else text


def resolved(name: str, folder: Path) -> str:
    """The name with a relative path read as lying in `folder`, such as a study file's."""
    asked = Name.parse(name)
    if not asked._is_path or Path(asked.where).is_absolute():
        return name
    return asked._written(str(folder / asked.where))
