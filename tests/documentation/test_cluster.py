"""docs/cluster.md: its commands have the options that they name, its manifest is one that runs."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import cli
from embedcache.extraction.parts import WorkPart
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests.documentation.pages import ROOT

yaml = pytest.importorskip("yaml")
PAGE = (ROOT / "docs" / "cluster.md").read_text("utf-8")


def fences(language: str) -> list[str]:
    parts = PAGE.split(f"```{language}\n")[1:]
    return [part.split("```", 1)[0] for part in parts]


def test_every_command_line_of_the_page_is_understood() -> None:
    lines = [
        line.split("#", 1)[0].strip()
        for fence in fences("sh")
        for line in fence.splitlines()
        if line.startswith("embedcache ")
    ]
    assert len(lines) >= 3
    group = typer.main.get_command(cli.app)
    for line in lines:
        _, name, *words = shlex.split(line)
        group.commands[name].make_context(name, words)  # type: ignore[attr-defined]


def test_the_manifest_is_an_indexed_job_whose_pods_know_their_part() -> None:
    [text] = fences("yaml")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    [container] = spec["template"]["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    assert int(given["JOB_COMPLETIONS"]) == spec["completions"]
    parts = {
        str(WorkPart.parse("auto", {**given, "JOB_COMPLETION_INDEX": str(i)}))
        for i in range(spec["completions"])
    }
    assert parts == {f"{i}/16" for i in range(1, 17)}
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in spec["template"]["spec"]["volumes"]}


def test_the_array_is_one_that_part_auto_reads() -> None:
    [script] = [fence for fence in fences("sh") if "#SBATCH --array" in fence]
    first, _, last = script.split("--array=")[1].split()[0].partition("-")
    n = int(last) - int(first) + 1
    environ = {"SLURM_ARRAY_TASK_COUNT": str(n), "SLURM_ARRAY_TASK_MIN": first}
    environ |= {"SLURM_ARRAY_TASK_MAX": last, "SLURM_ARRAY_TASK_STEP": "1"}
    found = [
        str(WorkPart.parse("auto", environ | {"SLURM_ARRAY_TASK_ID": str(i)})) for i in range(n)
    ]
    assert found == [f"{i}/{n}" for i in range(1, n + 1)]


def test_the_array_fills_a_cache_when_its_script_runs(
    make_photos: Callable[..., Path],
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page's own script, as jobs of submitit's local executor with the variables of Slurm."""
    submitit = pytest.importorskip("submitit")
    n = 3
    folder = make_photos(20)
    table = tmp_path / "photos.csv"
    rows = (f"{path.name},{path}" for path in sorted(folder.iterdir()))
    table.write_text("\n".join(["photo_id,photo", *rows]))
    [script] = [fence for fence in fences("sh") if "#SBATCH --array" in fence]
    for theirs, ours in (
        ("inception_v3.tf_in1k", f"local-dir:{tiny_weights}"),
        ("/shared/team.cache", str(tmp_path / "c")),
        ("photos.csv", str(table)),
        ("--part auto", "--part auto --json"),
    ):
        assert theirs in script
        script = script.replace(theirs, ours)
    (tmp_path / "array.sh").write_text(script)
    command = tmp_path / "bin" / "embedcache"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m embedcache "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    executor = submitit.AutoExecutor(folder=tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    jobs = []
    for task in range(n):
        variables = {"ID": task, "COUNT": n, "MIN": 0, "MAX": n - 1, "STEP": 1}
        given = [f"SLURM_ARRAY_TASK_{name}={value}" for name, value in variables.items()]
        words = ["env", *given, "bash", str(tmp_path / "array.sh")]
        jobs.append(executor.submit(submitit.helpers.CommandFunction(words, verbose=False)))
    documents = [json.loads(job.result().strip().splitlines()[-1]) for job in jobs]
    assert [document["part"] for document in documents] == [f"{i + 1}/{n}" for i in range(n)]
    assert sum(document["spaces"][0]["embedded"] for document in documents) == 20
    cache = Cache.open(tmp_path / "c")
    assert len(cache.photo_table()) == 20
    assert verify(cache).clean
