from __future__ import annotations

from typing import Any

import pytest

from carls_jax.configs import to_dataclass
from carls_jax.errors import ConfigError
from carls_jax.makers import lockstep
from carls_jax.training import SessionConfig, WhenAway


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "hope"}, "policy='hope': allowed are 'wait', 'last_seen' and 'fail'"),
        ({"patience_s": 0.0}, "patience_s=0.0"),
        ({"wait_s": float("nan")}, "wait_s=nan"),
        ({"max_seen_bytes": 1 << 19}, "max_seen_bytes=524288: allowed are 0 and from 1048576"),
        ({"max_seen_bytes": -1}, "max_seen_bytes=-1"),
        ({"max_kept_bytes": -1}, "max_kept_bytes=-1"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WhenAway(**values)


def test_it_is_a_section_of_an_experiments_config() -> None:
    config = to_dataclass(SessionConfig, {"when_away": {"policy": "last_seen", "wait_s": 60}})
    assert config.when_away == WhenAway("last_seen", wait_s=60.0)


def test_in_lockstep_no_step_sees_rows_of_before() -> None:
    with pytest.raises(ConfigError, match=r"when_away.policy='last_seen': in lockstep"):
        SessionConfig(lockstep(10), when_away=WhenAway("last_seen"))
