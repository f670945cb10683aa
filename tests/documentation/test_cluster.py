"""docs/cluster.md: its commands have the options that they name, its manifest is one that runs."""

import shlex

import pytest
import typer

import cli
from embedcache.extraction.parts import WorkPart
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
