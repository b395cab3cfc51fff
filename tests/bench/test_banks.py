from __future__ import annotations

import os

import numpy as np
import pytest

from carls_jax.bank import Field
from carls_jax.bench.banks import LOCAL, TCP, UNIX, bank_server, loaded, tables_everywhere
from carls_jax.bench.rows import VALUE, random_rows, table_of


def test_banks_of_every_kind_hold_the_same_rows():
    rows = random_rows(100, 4)
    with tables_everywhere(table_of(Field((4,))), {VALUE: rows}) as tables:
        assert list(tables) == [LOCAL, UNIX, TCP]
        for table in tables.values():
            np.testing.assert_array_equal(table.lookup(np.arange(100))[VALUE], rows)


def test_a_server_runs_in_another_process_and_ends_with_the_block():
    spec, values = table_of(Field((4,))), {VALUE: random_rows(3, 4)}
    with bank_server() as server, loaded(server.address, spec, values) as table:
        assert server.pid != os.getpid()
        assert server.workdir.is_dir()
        assert len(table) == 3
    assert not server.workdir.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
