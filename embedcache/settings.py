"""embedcache.toml: the shared copy's address and a writer's name, for a team's project folder."""

import stat
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import InputError
from embedcache.remotes.address import mistyped

FILE = "embedcache.toml"
MAX_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What embedcache.toml says. remote, writer: "" where it says nothing; file: None, likewise.

    remote: where `push`, `pull` and `extract` go when no URL is given.
    offer: whether `extract` gives back what it computes.
    writer: a name for manifests; nothing else is ever taken for one.
    """

    remote: str = ""
    offer: bool = False
    writer: str = ""
    file: Path | None = None


def read_settings(start: Path | None = None) -> Settings:
    """Read the nearest embedcache.toml in `start` (the current folder) or above it.

    A file that everybody may write to, or whose folder, is passed over with a warning: it could
    send vectors anywhere.
    Raises InputError for a file that does not fit.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        path = folder / FILE
        if not path.is_file():
            continue
        open_to_all = [place for place in (folder, path) if place.stat().st_mode & stat.S_IWOTH]
        if not open_to_all:
            return _parse(path)
        warn(
            f"{path} is passed over, for everybody may write to {open_to_all[0]}, and it could "
            f"send vectors anywhere. If what it says is right, run 'chmod o-w {open_to_all[0]}'"
        )
    return Settings()


def _parse(path: Path) -> Settings:
    kinds = {"remote": str, "offer": bool, "writer": str}
    try:
        with open(path, "rb") as file:
            found = tomllib.loads(file.read(MAX_FILE_BYTES).decode())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    for key, value in found.items():
        if key not in kinds or type(value) is not kinds[key]:
            raise InputError(
                f'{path} has {key!r:.40} in a way that does not fit; it may have remote = "URL or '
                'folder", offer = true or false, and writer = "a name"'
            )
    remote = found.get("remote", "")
    if remote == "none":  # as extract --remote has it
        remote = ""
    if remote and "://" not in remote and not mistyped(remote):
        remote = str(path.parent / Path(remote).expanduser())
    writer = found.get("writer", "")
    if len(writer) > 200:
        raise InputError(f"{path}: a writer's name has up to 200 characters")
    return Settings(remote=remote, offer=found.get("offer", False), writer=writer, file=path)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
