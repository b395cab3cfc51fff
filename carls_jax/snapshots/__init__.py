"""What people do with snapshots and what is in them: `carls-jax snapshots`, `inspect` and `diff`.

options.py    which commands and options there are
commands.py   what each does with its options
listing.py    which snapshots a bank has
checking.py   which of their files are damaged
compacting.py gives the space of old ones back
tables.py     the tables of a snapshot or an export, read in blocks
exporting.py  writes a snapshot as a .npz file
exported.py   reads one
comparing.py  in what two of them differ
difference.py how that is told
inspecting.py what a table is
"""
