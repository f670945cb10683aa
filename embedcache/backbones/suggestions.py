"""What a backbone's name that is not known may have meant."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

SHOWN = 5
_FILES = (".pt", ".pth", ".safetensors")


def suggestion(name: str, known: Sequence[str]) -> str:
    """` Did you mean ...?` for a name without its crop, "" where nothing is close.

    name: as a user wrote it; a folder or a file that exists is offered with its prefix.
    known: the names to compare it with.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return f" It is a folder: did you mean local-dir:{name}?"
    if path.is_file() and path.suffix in _FILES:
        return f" It is a file: did you mean facenet:{name}?"
    base = name.partition(".")[0]
    close = [other for other in known if other.startswith(f"{base}.")]
    close += get_close_matches(name, known, SHOWN)
    near = _near(base, known)
    close += [other for other in known if other.partition(".")[0] in near]
    shown = list(dict.fromkeys(close))[:SHOWN]
    return f" Did you mean {', '.join(shown)}?" if shown else ""


def _near(base: str, known: Sequence[str]) -> list[str]:
    """Architectures with a name like this one."""
    return get_close_matches(base, sorted({other.partition(".")[0] for other in known}), 2)
