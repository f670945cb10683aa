"""Every command beside every other: paused at each look at the disk, or killed there.

process.py     a forked operation that stops before each look at, and change of, the disk
world.py       a small cache, another, their remote and photos, copied for each schedule
operations.py  the commands, what each adds and what each forgets
oracle.py      what is readable by plain zarr and the rules of docs/format.md; files' raw bytes
zarr_rows.py   the zarr reader of the oracle, a process of its own because zarr starts threads
schedule.py    one schedule: X to its k-th event, Y to its end, then X; what went wrong
sweep.py       a worker process without threads that runs schedules asked of it
"""
