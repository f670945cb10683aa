"""The options of `fit-head` as types: how labels are read, split, fitted and judged.

What they mean stands in `heads.dataset.load`, `heads.fit` and `heads.fitting.protocol`, which this
room does not know: `cli.py` hands the values on.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

Optimizer = Literal["adam", "sgd"]
Loss = Literal["auto", "mse", "log_loss", "binomial"]
Start = Literal["linear", "constant", "random"]
Products = Literal["float32", "bfloat16"]
ProtocolName = Literal["paper", "warm"]

LabelTable = Annotated[Path, typer.Option(help="A .csv/.parquet table with ids and labels.")]
Targets = Annotated[
    list[str],
    typer.Option(metavar="COLUMN", help="Column to predict; several are fitted jointly."),
]
HeadFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the fitted heads.")]
WeightColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column with the weight of each row.")
]
Task = Annotated[str, typer.Option(help="auto, regression, binary or multiclass.")]
HeadNames = Annotated[
    list[str] | None,
    typer.Option(
        help="all, const, ridge, logistic, or 0fc, 1fc, 2fc (0, 1 or 2 fully connected layers "
        "before the output); may be repeated."
    ),
]
FaceCount = Annotated[
    int | None, typer.Option(min=0, help="Keep only photos with exactly N faces.", metavar="N")
]
SplitBy = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Keep rows with equal values together.")
]
SplitColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="A column that holds train, dev or test.")
]
KeepTogether = Annotated[
    str | None,
    typer.Option(
        metavar="near-duplicates[:X]",
        help="Keep copies that were resized, cropped or saved again together; X: their cosine.",
    ),
]
Stratify = Annotated[bool, typer.Option("--stratify", help="Stratify the split by class.")]
By = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Report the error per group; may be repeated."),
]
Folds = Annotated[
    int | None,
    typer.Option(help="K-fold, 3 or more: test every photo once. [default: one split]"),
]
DevOnly = Annotated[
    bool, typer.Option("--dev-only", help="Report on dev only; do not read the test rows.")
]
ProtocolOption = Annotated[
    ProtocolName,
    typer.Option(help="paper: FC heads from scratch; warm: from the linear head."),
]
Hidden = Annotated[
    int | None, typer.Option(min=1, help="Width of each hidden layer. [default: 256]")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Maximum epochs. [default: 20]")]
TrainBatch = Annotated[
    int | None, typer.Option(min=1, help="Photos per step of the training. [default: 256]")
]
LearningRates = Annotated[
    list[float] | None, typer.Option(help="May be repeated; dev chooses. [default: a sweep]")
]
OptimizerOption = Annotated[Optimizer | None, typer.Option(help="[default: adam]")]
LossOption = Annotated[
    Loss | None,
    typer.Option(help="binomial: for ratios whose weights are their counts. [default: auto]"),
]
Dropout = Annotated[float | None, typer.Option(help="Dropout rate of hidden units. [default: 0]")]
WeightDecay = Annotated[float | None, typer.Option(help="As in AdamW. [default: 0]")]
Members = Annotated[
    int | None, typer.Option(min=1, help="Ensemble size of each FC head. [default: 1]")
]
Patience = Annotated[
    int | None,
    typer.Option(
        min=0, help="Stop after N epochs without a dev gain; 0: never. [default: 4; paper: 0]"
    ),
]
HalvingSteps = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Drop the worse half of the rates of 1fc and 2fc after N steps, 2N, 4N, by dev; "
        "0: never. [default: 32; paper: 0]",
    ),
]
ProductsOption = Annotated[
    Products | None,
    typer.Option(
        help="Arithmetic of the FC heads' first layers while they train and are chosen. bfloat16 "
        "is faster where the processor has it, and rounds. [default: float32]"
    ),
]
StartOption = Annotated[
    Start | None,
    typer.Option(
        help="Initialisation of the FC heads: the linear baseline, the constant, or random. "
        "[default: set by --protocol]"
    ),
]
Margin = Annotated[
    float | None,
    typer.Option(
        help="Minimum dev gain, in standard errors, to leave a linear start. [default: 2.5]"
    ),
]
DropMissing = Annotated[
    bool, typer.Option("--drop-missing", help="Leave out rows without a label.")
]
MemoryLimit = Annotated[
    int | None, typer.Option(min=1, help="Limit of vectors in memory, in MB. [default: none]")
]
Seed = Annotated[int, typer.Option(help="Seed of the split and of the training.")]
FitDevice = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")]
RefOption = Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")]
OneBackbone = Annotated[  # a list, so that the command can say who takes several
    list[str],
    typer.Option(
        "--backbone",
        metavar="NAME[@face][#LAYER]",
        help="The backbone to use, or a layer of it; see 'embedcache info'.",
    ),
]
Ratings = Annotated[
    Path, typer.Option(help="A .csv/.parquet table: rater_id, photo id, rating; a row each.")
]
TasteFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the fitted taste.")]
RaterColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Who rated. [default: rater_id, viewer_id, sender_id, ...]"
    ),
]
RatedColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="The photo. [default: photo_id, user_id, id or recipient_id]"
    ),
]
RatingColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The rating. [default: rating, score or liked]"),
]
TasteSeed = Annotated[int, typer.Option(help="Seed of the split and of the comparison.")]
FittedHead = Annotated[
    Path, typer.Argument(metavar="HEAD_DIR", help="A folder that fit-head wrote.")
]
HeadOrTaste = Annotated[
    Path, typer.Argument(metavar="HEAD_DIR", help="A folder that fit-head or fit-taste wrote.")
]
OtherHead = Annotated[Path, typer.Argument(metavar="HEAD_DIR", help="Another one, same label.")]
PredictionsFile = Annotated[
    str, typer.Option(metavar="FILE", help="The predictions: .csv, .parquet, or - for stdout.")
]
Viewer = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Of a taste: whose. [default: what all viewers share]"),
]
BestFirst = Annotated[
    bool,
    typer.Option("--sort", help="Write the highest prediction first, and photos without one last."),
]
MovedBackbones = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[@face]",
        help="The head's backbone, if its weights have moved; of several all, in their order.",
    ),
]
PictureFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A picture per photo of the pixels that moved the prediction; it is not a cause.",
    ),
]
