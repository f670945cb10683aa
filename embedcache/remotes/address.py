"""The addresses that a shared copy may have, checked before any request is made."""

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from embedcache.errors import RemoteError

OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
SCHEMES = (*OBJECT_SCHEMES, "ssh", "sftp", "file")
# An scp address, "ben@host:/srv", and a URL without its //, "s3:/bucket" or "s3:bucket".
_SCP = re.compile(r"(?P<user>[^/@:]+)@(?P<host>[^/@:]+):(?P<path>.*)", re.DOTALL)
_SLASHLESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?!//)(?P<rest>.*)", re.DOTALL)


def mistyped(address: str) -> str:
    """A hint for an address that looks like a URL and is not one; "" for any other."""
    if found := _SCP.fullmatch(address):
        return f"did you mean ssh://{found['user']}@{found['host']}/{found['path'].lstrip('/')}?"
    found = _SLASHLESS.fullmatch(address)
    if found is None:
        return ""
    scheme = found["scheme"].lower()
    if scheme not in SCHEMES:
        return "a URL has // after its scheme, as in s3://BUCKET/PREFIX or ssh://HOST/FOLDER."
    rest = re.split(r"[?#;]", found["rest"].rpartition("@")[2])[0].lstrip("/")
    return f"did you mean {scheme}://{'/' if scheme == 'file' else ''}{rest}?"


def parse_address(address: str) -> Path | SplitResult:
    """The folder that an address names, ~ expanded, or the parts of a URL.

    Raises RemoteError for one that is mistyped, holds a credential, or has an unknown scheme.
    """
    if address == "none":
        raise RemoteError(
            "'none' means no remote, as in 'embedcache extract --remote none'; for a folder "
            "of that name write ./none"
        )
    if "://" not in address:
        if hint := mistyped(address):
            raise RemoteError(
                f"this address is neither a URL nor a folder: {hint} For a folder of that name, "
                "write ./ before it"
            )
        try:
            return Path(address).expanduser()
        except RuntimeError:
            raise RemoteError(f"{address}: no such user") from None
    scheme, _, rest = address.partition("://")
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise RemoteError(f"this {scheme}:// URL cannot be read: {error}") from None
    named = "@" in rest.split("/")[0] and scheme in OBJECT_SCHEMES
    if re.search(r"[?#;]", rest) or parts.password is not None or named:
        raise RemoteError(
            f"this {scheme}:// URL holds more than an address, perhaps a credential, which would "
            "end up in messages and files",
            advice="Leave it out. docs/sharing.md says how to sign in to each kind of storage",
        )
    if scheme not in SCHEMES:
        raise RemoteError(
            f"a shared copy cannot have the scheme {scheme}://",
            advice="Name a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX "
            "or ssh://HOST/FOLDER",
        )
    if scheme == "file":
        if parts.netloc in (".", ".."):
            raise RemoteError(
                "a file:// URL has the whole path of a folder", advice="Name it file:///PATH"
            )
        if parts.netloc not in ("", "localhost"):
            raise RemoteError(
                f"a file:// URL names a folder of this machine, and this one names the host "
                f"{parts.netloc}",
                advice=f"Did you mean file:///{rest} or ssh://{rest}?",
            )
        return Path(parts.path)
    try:
        port = parts.port
    except ValueError:
        raise RemoteError(
            f"the port in {scheme}://{parts.hostname}:... is not a number from 1 to 65535"
        ) from None
    if not parts.hostname or port == 0:
        raise RemoteError(f"{address} has no host or bucket, or its port is 0")
    return parts
