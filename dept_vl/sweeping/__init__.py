"""Grids of ordinary runs: methods, tasks, backbones and seeds, searched for rates, run, measured and compared."""
