"""All benchmarks behind one command: ``python -m dept_vl.bench train|infer|serve|store --help``."""

from __future__ import annotations

import sys

from dept_vl.bench.plain_checkout import allow_plain_checkout

allow_plain_checkout()

from dept_vl.bench.commands import main  # noqa: E402 - nothing of ours may be imported before
from dept_vl.command_line import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
