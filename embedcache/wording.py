"""Words on a screen: counts with their nouns, columns, and text that a terminal may show."""

from collections.abc import Sequence
from html import escape


def counted(n: int, one: str, many: str = "") -> str:
    """`1 photo`, `2,000 photos`, `1 row is`; many: `one` with an s unless given."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def reason(error: Exception) -> str:
    """What went wrong, of an OSError without its number and path, which a message names itself."""
    return getattr(error, "strerror", None) or str(error)


def printable(text: str) -> str:
    """Text without control characters: names and servers' answers may hold any."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def plain(text: str) -> str:
    """Text on one line without control characters: a name must not look like two lines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each, as lines whose cells stand below each other."""
    shown = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]


def html_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title and a table as a notebook shows them."""
    cells = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    cells += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<p>{escape(title)}</p><table>{''.join(cells)}</table>"
