"""From an address to a remote: the one place that chooses an implementation."""

from pathlib import Path

from embedcache.remotes.address import OBJECT_SCHEMES, parse_address
from embedcache.remotes.files import FilesRemote
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.objects import DEADLINE_SECONDS, SILENCE_SECONDS, ObjectRemote, open_store
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import ANSWER_SECONDS, Remote


def open_remote(url: str, *, staging: str = "shared") -> Remote:
    """The remote at `url`, with retries; makes no request yet.

    staging: marks this cache's unfinished pushes on file systems, apart from those of others.
    Raises RemoteError for a URL that holds a credential, or whose library is not installed.
    """
    return Patient(choose(url, staging))


def choose(url: str, staging: str) -> Remote:
    """The remote at `url`, without retries."""
    parts, name = parse_address(url), url.rstrip("/")
    if isinstance(parts, Path):
        return FilesRemote(LocalFiles(parts), str(parts), staging=staging)
    if parts.scheme in OBJECT_SCHEMES:
        return ObjectRemote(
            open_store(name, silence=SILENCE_SECONDS),
            name,
            quick=open_store(name, silence=ANSWER_SECONDS),
            small=open_store(name, silence=ANSWER_SECONDS, deadline=DEADLINE_SECONDS),
        )
    from embedcache.remotes.sftp import SftpFiles

    return FilesRemote(SftpFiles(parts), name, staging=staging)
