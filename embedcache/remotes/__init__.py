"""Storage that a team shares: folders, object stores and SSH behind one small protocol.

This room owns transport: listing, reading, creating and deleting objects with bounded patience. It
imports `errors` and `disk` only and knows nothing of what the objects mean.
"""

__all__ = [
    "address",
    "files",
    "folder",
    "guard",
    "listing",
    "objects",
    "opening",
    "patience",
    "remote",
    "sftp",
]
