"""The job array: what is submitted, and what a task does with its end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dept_vl.sweeping.grid import Grid, setups
from dept_vl.sweeping.runner import How
from dept_vl.sweeping.slurm import slurm_script

GRID = Grid(methods=("dept", "lora", "ia3"), tasks=("rte",), data={"rte": Path("r te")}, seeds=(0, 1))


def script(how: How, **changes: str) -> str:
    return slurm_script(GRID, Path("out"), setups(GRID)[2:], script=Path("my sweep.sh"), how=how, **changes)


def test_searches_come_before_runs_and_what_is_impossible_has_no_task() -> None:
    text = script(How(jobs=4, trials=5), reference="lora")
    assert "# 4 runs after 2 searches for rates." in text
    assert "#   search=$(sbatch --parsable 'my sweep.sh')\n" in text
    assert "#   runs=$(sbatch --parsable --dependency=afterany:$search --array=3-4,6-7%4 'my sweep.sh')\n" in text
    assert "#SBATCH --array=0-1%4\n" in text
    assert "--search 5 --reference lora --collect" in text


def test_without_a_search_there_is_one_array() -> None:
    text = script(How(jobs=2, launcher="torchrun -m --", costs=False))
    assert "#   runs=$(sbatch --parsable 'my sweep.sh')\n" in text
    assert "#SBATCH --array=0-1,3-4%2\n" in text
    assert "--launcher 'torchrun -m --' --no-costs --cell \"$SLURM_ARRAY_TASK_ID\"\n" in text


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (3, ""), (75, "requeue 12_5\n")])
def test_a_task_that_was_told_to_stop_is_queued_again(tmp_path: Path, code: int, requeued: str) -> None:
    """The cluster's two commands are stood in for."""
    commands = {"srun": f'echo "$@" > {tmp_path}/run; exit {code}', "scontrol": f'echo "$@" > {tmp_path}/requeued'}
    for name, command in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sweep.sh").write_text(script(How()))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "5"}
    assert subprocess.run(["bash", str(tmp_path / "sweep.sh")], env=environment).returncode == code
    assert (tmp_path / "run").read_text().endswith("--output out --cell 5\n")
    found = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").exists() else ""
    assert found == requeued
