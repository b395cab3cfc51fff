"""Measures the bank beside its peers and its limits, in one run.

    harness.py     times contestants in turns
    report.py      the table, the JSON line and the plot of a run
    machine.py     what a run was made on, and what a process takes of it
    banks.py       bank servers in processes of their own, and banks of every kind
    redis_peer.py  Redis as a peer, where it is installed
    worker.py      clients in processes of their own
    rows.py        random rows and keys
    row_calls.py   what lookup, update and push share
    encoder.py     the training step of pipeline and neighbors
    feeds.py       where that step gets its neighbours' rows from
    running.py     runs a benchmark by its name

Each other file is one benchmark: what it measures in its docstring, `Scale` for how much it does,
`QUICK` for a run of seconds, and `run(scale)`, which returns the report.
"""

BENCHMARKS = (
    "lookup",
    "size",
    "update",
    "push",
    "pipeline",
    "neighbors",
    "concurrency",
    "memory",
    "growth",
    "limits",
    "snapshot",
    "journal",
    "recovery",
)
