from __future__ import annotations

import dataclasses

import pytest

from carls_jax.errors import ConfigError
from carls_jax.launch import Program, RestartPolicy, Role

TRAINER = Role("trainer", ("true",))
BANK = Role("bank", ("true",), is_service=True)


def test_restarts_wait_twice_as_long_each_time_up_to_a_limit():
    policy = RestartPolicy(first_delay_s=0.5, max_delay_s=3.0)
    assert [policy.delay_s(restarts) for restarts in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_restarts": -1}, "max_restarts is -1"),
        ({"first_delay_s": -1.0}, "first_delay_s is -1.0"),
        ({"first_delay_s": 2.0, "max_delay_s": 1.0}, "max_delay_s 1.0"),
        # Waits of 0.5 + 1 + 2 seconds: after them the first restart is already forgotten.
        ({"max_restarts": 3, "window_s": 3.5}, "never be noticed"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        RestartPolicy(**values)


def test_index_is_filled_in_for_each_replica():
    role = Role(
        "maker", ("make", "--index={index}"), count=3, environment={"SEED": "{index}", "A": "b"}
    )
    assert role.replica_name(2) == "maker-2"
    assert role.replica_argv(2) == ("make", "--index=2")
    assert role.replica_environment(2) == {"SEED": "2", "A": "b"}


def test_other_braces_in_an_argument_are_left_alone():
    assert Role("a", ("echo", "{} {x}")).replica_argv(0) == ("echo", "{} {x}")


@pytest.mark.parametrize("name", ["", "0a", "a-b", "a b", "a/b", "../a"])
def test_a_role_name_that_could_not_name_a_file_or_replica_is_refused(name):
    with pytest.raises(ConfigError, match="role name"):
        Role(name, ("true",))


@pytest.mark.parametrize("argv", ["true", (), ["true"], ("sleep", 1)])
def test_a_command_that_is_no_tuple_of_strings_is_refused(argv):
    with pytest.raises(ConfigError, match="argv of role 'a'"):
        Role("a", argv)


def test_a_role_has_at_least_one_replica():
    with pytest.raises(ConfigError, match="count of role 'a' is 0"):
        Role("a", ("true",), count=0)


def test_role_names_are_unique():
    with pytest.raises(ConfigError, match=r"\['trainer'\] appear more than once"):
        Program((TRAINER, BANK, TRAINER))


@pytest.mark.parametrize("roles", [(), (BANK,)])
def test_a_program_that_would_never_finish_is_refused(roles):
    with pytest.raises(ConfigError, match="never finish"):
        Program(roles)


def test_a_program_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Program((TRAINER,)).roles = ()
