"""The files that data sets and leaderboards come in: reading, and saying all that is wrong with one."""
