"""The options of `labels`, `study`, `simulate` and `demo` as types.

What they mean stands in `heads.labels` and `heads.study`, which this room does not know: `cli.py`
hands the values on.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Literal["csv", "parquet"]

Users = Annotated[Path, typer.Option(help="A table: user_id, gender, photo [, photo_updated_at].")]
Swipes = Annotated[
    Path,
    typer.Option(help="A table: recipient_id, liked [, sender_id, sender_gender, swiped_at]."),
]
LabelsFile = Annotated[Path, typer.Option(help="The label table to write, .csv or .parquet.")]
KeepUnswiped = Annotated[
    bool, typer.Option(help="Also write users who have a photo but no kept swipe.")
]

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.toml", help="The study; --init writes one.")
]
PageFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder for the page and its files.")
]
StudyCache = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The cache. [default: OUT/photos.cache]")
]
Init = Annotated[bool, typer.Option("--init", help="Write a commented STUDY.toml.")]
InitLabels = Annotated[
    Path | None,
    typer.Option(help="With --init: a label table of yours, in place of a swipe log."),
]
ShowPhotos = Annotated[
    bool, typer.Option(help="Show photos on the page; use --no-photos to share it.")
]
LinkPhotos = Annotated[
    bool, typer.Option("--link", help="Save thumbnails beside the page, not in it.")
]
Explain = Annotated[
    bool,
    typer.Option(help="Draw what moved the predictions of a few photos; it is not a cause."),
]

SimulatedFolder = Annotated[
    Path, typer.Option(metavar="DIR", help="The folder for users and swipes.")
]
NumberOfUsers = Annotated[int, typer.Option(min=1, help="Users before any filter.")]
NumberOfSwipes = Annotated[int, typer.Option(min=1, help="Swipes before any filter.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers.")]
TableFormat = Annotated[Format, typer.Option("--format", help="Format of both tables.")]

DemoFolder = Annotated[Path, typer.Option(metavar="DIR", help="The folder for everything.")]
DemoPhotos = Annotated[int, typer.Option(min=60, help="Number of photos to make.")]
