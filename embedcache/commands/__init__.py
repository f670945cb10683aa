"""The commands of stage one: each parses its options, calls one library function and prints.

`cli.py` adds them to its own (docs/decisions/004). Owns the options that mean the same everywhere;
writes to stdout and stderr only, and imports what is heavy inside the commands.
"""

__all__ = [
    "alike",
    "caches",
    "embedding",
    "fit_options",
    "options",
    "pictures",
    "shared_copies",
    "shell",
    "study_options",
]
