"""A SLURM script that runs a sweep as a job array: one task for each search and run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dept_vl.command_line import command_text
from dept_vl.sweeping.grid import Grid, Setup, sweep_arguments
from dept_vl.sweeping.runner import How, unit_command, units

WARNING_SECONDS = 120  # before the end of its time, in which a job saves
SCRIPT = """\
#!/bin/bash
# {count} runs{searches}. Set the partition, the time and what else the cluster asks for, then:
{submission}
#SBATCH --job-name=dept_vl-sweep
#SBATCH --array={first}%{jobs}
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@{warning}
#SBATCH --output={logs}/%a.log

srun {command}
code=$?
# 75: it was told to stop and has saved. The same task goes on from there.
if [ "$code" -eq 75 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def slurm_script(
    grid: Grid, folder: Path, impossible: Sequence[Setup], *, script: Path, how: How, reference: str | None = None
) -> str:
    """The script; rows that cannot be run have no tasks. ``how.jobs`` tasks run at a time."""
    every = units(grid, how)
    left_out = set(impossible)
    wanted = [n for n, unit in enumerate(every) if (unit if isinstance(unit, Setup) else unit.setup) not in left_out]
    searches = [number for number in wanted if isinstance(every[number], Setup)]
    runs = [number for number in wanted if number not in set(searches)]
    name = shlex.quote(str(script))
    further = ["--search", str(how.trials)] if how.trials else []
    further += ["--reference", reference] if reference else []
    collecting = command_text("dept_vl.sweep", [*sweep_arguments(grid, folder), *further, "--collect"])
    first = [f"search=$(sbatch --parsable {name})"] if searches else []
    after = f" --dependency=afterany:$search --array={_ranges(runs)}%{how.jobs}" if searches else ""
    submission = [*first, f"runs=$(sbatch --parsable{after} {name})"]
    submission += [f"sbatch --dependency=afterany:$runs --wrap {shlex.quote(collecting)}"]
    *unit, _ = unit_command(grid, "", folder, how)
    return SCRIPT.format(
        count=len(runs),
        searches=f" after {len(searches)} searches for rates" if searches else "",
        submission="\n".join(f"#   {line}" for line in submission),
        first=_ranges(searches or runs),
        jobs=how.jobs,
        warning=WARNING_SECONDS,
        logs=folder / "logs",
        command=f'{command_text(unit[0], unit[1:])} "$SLURM_ARRAY_TASK_ID"',
    )


def _ranges(numbers: Sequence[int]) -> str:
    """As SLURM writes them: 0-3,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
