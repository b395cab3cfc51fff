from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest

from carls_jax.bench.redis_peer import redis_peer


@pytest.fixture
def peer():
    if not shutil.which("redis-server") or not importlib.util.find_spec("hiredis"):
        pytest.skip("Redis is not installed")
    with redis_peer(width=3) as peer:
        yield peer


def test_rows_come_back_in_the_order_asked_for(peer):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    peer.set_rows(np.array([7, -2, 0, 2**40]), rows)
    np.testing.assert_array_equal(peer.get_rows(np.array([2**40, 7, 7])), rows[[3, 0, 0]])


def test_many_rows_are_loaded_in_blocks(peer):
    rows = np.arange(30_000, dtype=np.float32).reshape(10_000, 3)
    peer.load(np.arange(10_000), rows)
    np.testing.assert_array_equal(peer.get_rows(np.arange(10_000)), rows)


def test_an_error_of_the_server_is_raised(peer):
    with pytest.raises(Exception, match="wrong number of arguments"):
        peer.get_rows(np.array([], np.int64))


def test_there_is_no_peer_where_redis_is_not_installed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with redis_peer(width=3) as missing:
        assert missing is None
