"""Shows the project's docstrings as pages: one paragraph per parameter.

A docstring here describes a parameter on a line `name: text`, continued on indented lines. Markdown
would join such lines into one paragraph; this makes each of them an item of a list.
"""

import re

from griffe import Extension, Object

_PARAMETER = re.compile(r"^((?:\*{0,2}\w+)(?:, \w+)*): +(\S)")


def as_list(text: str) -> str:
    """The docstring with `name: text` lines as a Markdown list; code and prose stay as they are."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if found := _PARAMETER.match(line):
            if not inside:
                lines.append("")
            lines.append(f"- `{found[1]}`: {line[found.start(2) :]}")
            inside = True
        elif inside and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            if inside:
                lines.append("")
            lines.append(line)
            inside = False
    return "\n".join(lines)


class Parameters(Extension):
    """Rewrites each docstring as it is read."""

    def on_instance(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)
