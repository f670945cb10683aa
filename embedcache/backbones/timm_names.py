"""The names of timm's networks, read from its source: to import timm and torch takes seconds.

Some tags are made up while timm is imported, so an architecture that is not here is unknown, and a
tag that is not here may exist.
"""

import re
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from embedcache.backbones.names import Name
from embedcache.backbones.suggestions import suggestion
from embedcache.errors import WeightsError

_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_TAGGED = re.compile(r"""['"]([a-z]\w*)\.(\w+)['"]""")
_RENAMED = re.compile(r"""['"](\w+)['"]\s*: ['"](\w+)(?:\.\w+)?['"]""")


def refuse_unknown(name: Name) -> None:
    """WeightsError for a name of timm's form that no architecture of the installed timm has.

    Once timm is imported it is asked itself, since a program may add networks of its own to it.
    """
    if name.source != "timm" or "timm" in sys.modules:
        return
    architectures, older, tags = _names()
    if architectures and name.where.partition(".")[0] not in architectures | older:
        bare = architectures - {tag.partition(".")[0] for tag in tags}
        raise unknown(name.where, sorted(tags | bare))


def unknown(where: str, known: list[str]) -> WeightsError:
    """The error for a name that timm does not know; `known`: names that may have been meant."""
    return WeightsError(
        f"timm {version('timm')} has no model {where!r}.{suggestion(where, known)} "
        "List all with python -c 'import timm; print(timm.list_pretrained())'."
    )


def _names() -> tuple[set[str], set[str], set[str]]:
    """(architectures, their older names, their tags as `architecture.tag`) in timm's source."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return set(), set(), set()
    files = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    text = "\n".join(file.read_text("utf-8", errors="replace") for file in files)
    architectures = set(_REGISTERED.findall(text))
    older = {old for old, new in _RENAMED.findall(text) if new in architectures}
    tags = {f"{base}.{tag}" for base, tag in _TAGGED.findall(text) if base in architectures}
    return architectures, older, tags
