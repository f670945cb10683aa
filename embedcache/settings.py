"""embedcache.toml: the address of a team's shared copy and a writer's name, per project folder."""

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from embedcache.errors import InputError
from embedcache.remotes.address import mistyped
from embedcache.wording import reason

FILE = "embedcache.toml"
MAX_SETTINGS_BYTES = 65_536
MAX_WRITER_CHARACTERS = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSettings:
    """What embedcache.toml says. remote and writer are "" where it says nothing; file is None then.

    remote: where `push`, `pull` and `extract` go when no URL is given.
    offer: whether `extract` uploads what it computes.
    writer: a name for manifests; nothing else is ever used as one.
    """

    remote: str = ""
    offer: bool = False
    writer: str = ""
    file: Path | None = None


class _Keys(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of embedcache.toml and their types."""

    remote: str = ""
    offer: bool = False
    writer: str = ""


def read_settings(start: Path | None = None) -> ProjectSettings:
    """Read the nearest embedcache.toml in `start` (the current folder) or above it.

    A file that another user could have written is ignored with a warning, because it could send
    vectors anywhere: it, or its folder, is world-writable or belongs to neither this user nor root.
    Raises InputError for a file that does not parse.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        path = folder / FILE
        if not path.is_file():
            continue
        if not (reason := _untrusted(folder, path)):
            return _parse(path)
        warn(f"{path} is ignored: {reason}")
    return ProjectSettings()


def warn(text: str) -> None:
    """Print a warning on stderr, or hand it to whatever handles the `embedcache` logger."""
    log.warning("warning: %s", text)


def _untrusted(folder: Path, path: Path) -> str:
    """Why the file is not obeyed, and what to do; "" where it is."""
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit():
        trusted.add(int(os.environ["SUDO_UID"]))
    for place in (folder, path):
        status = place.stat()
        if status.st_mode & stat.S_IWOTH:
            return (
                f"{place} is world-writable, so anyone could send your vectors anywhere. "
                f"If the file is right, run 'chmod o-w {place}'"
            )
        if status.st_uid not in trusted:
            return (
                f"{place} belongs to another user (uid {status.st_uid}), who could send your "
                f"vectors anywhere. If the file is right, copy it to a folder of your own"
            )
    return ""


def _parse(path: Path) -> ProjectSettings:
    try:
        with open(path, "rb") as file:
            found = msgspec.toml.decode(file.read(MAX_SETTINGS_BYTES), type=_Keys)
    except msgspec.ValidationError as error:
        raise InputError(
            f'{path}: {error}. It may hold remote = "URL or folder", offer = true or false, and '
            'writer = "a name"'
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from None
    remote = "" if found.remote == "none" else found.remote  # as in extract --remote none
    if remote and "://" not in remote and not mistyped(remote):
        remote = str(path.parent / Path(remote).expanduser())
    if len(found.writer) > MAX_WRITER_CHARACTERS:
        raise InputError(
            f"{path}: writer has {len(found.writer)} characters; at most {MAX_WRITER_CHARACTERS}"
        )
    if not found.writer.isprintable():
        raise InputError(
            f"{path}: writer holds a character that cannot be printed ({found.writer!a}), and "
            "readers refuse manifests with one. Use plain letters and spaces"
        )
    return ProjectSettings(remote=remote, offer=found.offer, writer=found.writer, file=path)
