"""One small interface over the places where a team keeps its shared copy.

    open_remote("/mnt/team/faces")        a folder
    open_remote("s3://bucket/team")       S3-compatible storage; gs:// and az:// the same way
    open_remote("ssh://host/srv/team")    SFTP

A `Remote` knows keys ("spaces/.../manifest.json") and bytes, not what they mean. What it returns is
untrusted: `embedcache.sharing` checks it. `patience.Patient` retries transient failures.
Credentials come from the environment, never from a URL.
"""

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from embedcache.errors import RemoteError

T = TypeVar("T")
Blocks = Callable[[], Iterator[bytes]]
Ours = Callable[[str], bool]  # whether embedcache wrote a file, by its path in a segment

BLOCK_BYTES = 1 << 20
SMALL_BYTES = 8 << 20
MAX_KEYS = 1_000_000
ANSWER_SECONDS = 8.0  # without a byte from a remote that is read


class Unreachable(RemoteError):
    """A transient failure: the network, or a server that is busy or down."""


class Denied(RemoteError):
    """A request that this member may not make."""


class Unconditional(RemoteError):
    """A storage that cannot create an object only if it does not exist."""


UNSEEN = -1


@dataclass(frozen=True, slots=True)
class ListedObject:
    """A listed object. tag: changes when its content does (an ETag, a time).

    size: UNSEEN for something that cannot be read; `tag` then gives the reason.
    """

    key: str
    size: int
    tag: str


class Remote(Protocol):
    """Objects by key.

    Methods raise FileNotFoundError, Denied, Unreachable, or RemoteError for a permanent failure.
    """

    @property
    def name(self) -> str:
        """The URL, as printed in messages."""
        ...

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """All objects whose key starts with `prefix`, which ends in "/"."""
        ...

    def top(self) -> Sequence[str]:
        """Names directly under the root, only the first of many; empty for an absent place.

        Raises RemoteError where no shared copy can be created.
        """
        ...

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        """Objects under `segment`/ that an interrupted push of this segment has left."""
        ...

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """An object's bytes from `start`, `length` of them or all, piece by piece."""
        ...

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        """Store an object whole or not at all; if `blocks` raises, nothing is stored."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Store an object that must not exist; False, and nothing is stored, where it does.

        Storing a segment's manifest makes the segment appear.
        """
        ...

    def create_once(self, key: str, data: bytes) -> bool:
        """As `create`, where several may choose the same name: at most one ever succeeds.

        Raises Unconditional where the storage cannot promise that.
        """
        ...

    def leftovers(self, folder: str) -> Sequence[str]:
        """Keys of hidden names in a folder, which interrupted commands have left."""
        ...

    def idle_seconds(self, key: str) -> float | None:
        """How long a leftover has not changed, by the storage's own clock; None where unknown."""
        ...

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        """Remove an object; no error where there is none.

        ours: of a folder that goes with it, which files to remove; None for all.
        """
        ...


def reason_of(error: BaseException) -> str:
    """An error's text on one short line, without the credentials that a URL may hold."""
    text = re.sub(r"(?<!<)\?\S*|(?<=//)[^/\s]*@", "", str(error).partition("Debug source")[0])
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def plain_os_error(error: Exception, name: str, key: str) -> Exception:
    """The exception of `Remote` for an operating system's error at a remote."""
    if not isinstance(error, OSError):
        return Unreachable(f"{name} cannot be reached ({key}): {reason_of(error)}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileNotFoundError(errno.ENOENT, "no such object", key)
    if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.EPERM):
        return Denied(f"{name} denied access to {key}: {error.strerror or error}")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return error  # of this machine, not of the remote: trying again does not help
    if error.errno == errno.ENAMETOOLONG:
        return RemoteError(f"{name}: a name in this address is too long: name another place")
    if error.errno == errno.EFBIG:
        return RemoteError(
            f"{name} takes no file as large as {key}",
            advice="Raise the limit with 'ulimit -f unlimited', or use another file system, then "
            "rerun the command",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RemoteError(f"{name} is full", advice="Make room there, then rerun the command")
    return Unreachable(
        f"{name} cannot be reached ({key}): {error.strerror or error}",
        advice="Rerun the command",
    )
