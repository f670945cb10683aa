"""Documents as tests: their code blocks, run in one folder as a reader would.

    session = Session(run, replaced={"--out demo": "--out demo --photos 60"})
    for block in blocks(page):
        session.play(block)

A `sh` block is run line by line, a `python` block in one namespace for the whole document. In a
`console` block each line after `$ ` is run, and the lines below it must be in its output (stdout
and stderr are read apart, so in any order), with any numbers and quoted names.
"""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from embedcache import example
from heads.labels import simulate

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block. line: where it begins, from 1."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} ({self.language or 'plain'})"


def blocks(page: Path) -> list[Block]:
    """Every fenced code block of a Markdown page, in order."""
    text = page.read_text("utf-8")
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def shape(line: str) -> str:
    """A line of output without numbers, dashes for numbers, quoted names, and widths of columns."""
    line = re.sub(r"\([^)]*%[^)]*\)|\b(sim)?([0-9a-f]{8}|[0-9a-f]{10})\b|'[^']*'", "#", line)
    line = re.sub(r"(?<![\w.])[-+]?\d[\d,.]*(e[-+]?\d+)?|(?<=\s)-(?=\s|$)", "#", line)
    return " ".join(line.split())


@dataclass(slots=True)
class Session:
    """Runs the blocks of one document in the current folder.

    run: a command line in this process (the fixture `run`).
    replaced: texts of shell lines, and what stands for them here, such as a smaller example.
    """

    run: Run
    replaced: Mapping[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def play(self, block: Block) -> None:
        """Run one block; AssertionError names the block and the line that fails."""
        if block.language == "python":
            code = "\n" * block.line + block.text
            exec(compile(code, str(block.page), "exec"), self.names)
        elif block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                self._shell(line, block)
        elif block.language == "console":
            for line, shown in _session(block.text):
                if line.startswith("head "):
                    shown = shown[:1]  # the rows are the example's, which is smaller here
                self._compare(shown, self._shell(line, block), f"{block}: {line}")
        else:
            raise AssertionError(f"{block}: nothing runs this language")

    def _shell(self, line: str, block: Block) -> str:
        """Run one line, with its redirections and variables; what it printed."""
        for text, here in self.replaced.items():
            line = line.replace(text, here)
        words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
        if not words:
            return ""
        command, *rest = words
        if command == "export":
            os.environ.update({name: value for name, _, value in (w.partition("=") for w in rest)})
            return ""
        if command == "cat":
            return "".join(Path(name).read_text("utf-8") for name in rest)
        if command == "head":
            lines = Path(rest[-1]).read_text("utf-8").splitlines()
            return "\n".join(lines[: -int(rest[0])])  # head -3 FILE
        if command == "cp":
            source, target = rest[-2:]
            (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, target)
            return ""
        if command in ("pip", "make"):
            return ""  # what these need is checked by tests of their own
        assert command == "embedcache", f"{block}: nothing runs {command!r}"
        status, out, err = self.run(*rest)
        assert status == 0, f"{block}: {line}\n{err}"
        return err + out

    @staticmethod
    def _compare(shown: list[str], printed: str, where: str) -> None:
        lines = {shape(line) for line in printed.splitlines()}
        for line in shown:
            found = line.strip() == "..." or shape(line) in lines
            assert found, f"{where}\n{line!r}\n{printed}"


def _session(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, lines shown below it) of a console block."""
    joined = text.replace("\\\n", " ")
    for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, [line for line in shown if line.strip()]


def demo_without_its_study(folder: Path) -> Path:
    """What later lines need of `embedcache demo`, with 60 photos: data with swipes, and weights."""
    made = example.make(folder / "data", n_photos=60)
    truth = pl.read_csv(made.truth).rename({"like_probability": "probability"})
    simulate.swipes(truth, seed=0).write_csv(made.folder / "swipes.csv")
    example.write_lite0(folder / "weights" / "efficientnet_lite0")
    return folder
