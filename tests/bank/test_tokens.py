from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carls_jax.bank import tokens
from carls_jax.bank.tokens import Token, kept_token, read_token, token_from_environment
from carls_jax.errors import InvalidInputError

SECRET = "s3cret-" + "x" * 20


def test_a_token_is_shown_by_what_it_sends():
    token = Token(SECRET)
    assert token.metadata == (("authorization", f"Bearer {SECRET}"),)
    assert token.is_shown_by((("user-agent", "x"), *token.metadata))


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", SECRET),),
        (("authorization", f"bearer {SECRET}"),),
        (("authorization", f"Bearer {SECRET} "),),
        (("authorization", f"Bearer {SECRET[:-1]}"),),
        (("authorization", f"Bearer {SECRET}x"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer \xe9\udc80"),),
        (("authorization", b"Bearer \xff"),),
        (("other", f"Bearer {SECRET}"),),
        # Which of two counts is nobody's guess.
        (("authorization", f"Bearer {SECRET}"), ("authorization", f"Bearer {SECRET}")),
        (("authorization", "Bearer x"), ("authorization", f"Bearer {SECRET}")),
    ],
)
def test_nothing_else_shows_it(metadata):
    assert not Token(SECRET).is_shown_by(metadata)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(
        tokens.hmac, "compare_digest", lambda one, other: compared.append((one, other)) or False
    )
    assert not Token(SECRET).is_shown_by(Token(SECRET).metadata)
    assert compared == [(f"Bearer {SECRET}".encode(),) * 2]


def test_a_token_is_in_no_repr():
    token = Token(SECRET, "CARLS_TOKEN")
    assert SECRET not in f"{token} {token!r} {[token]} {vars(token).keys()}"
    assert "CARLS_TOKEN" in repr(token)


@pytest.mark.parametrize("value", ["", "short", "x" * 15, "x" * 513, "x" * 20 + " ", "ü" * 20, 3])
def test_what_is_no_token_is_refused_and_not_shown(value):
    with pytest.raises(InvalidInputError, match=r"the token of token=\.\.\. is none") as caught:
        Token(value)
    assert not value or str(value) not in str(caught.value)


def test_a_token_is_made_once_and_is_its_owners_alone(tmp_path: Path):
    path = tmp_path / "made" / "token"
    mask = os.umask(0)
    try:
        token = kept_token(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token.value) == 43  # 32 bytes, six bits in a letter
    assert token.origin == f"token_file={path}"
    assert kept_token(path) == read_token(path) == token
    assert [one.name for one in path.parent.iterdir()] == ["token"]
    assert kept_token(tmp_path / "other").value != token.value


def test_processes_that_make_a_token_at_once_get_the_same(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: kept_token(tmp_path / "token").value, range(32)))
    assert len(set(made)) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["token"]


def test_a_file_may_end_in_a_new_line(tmp_path: Path):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f"{SECRET}\n")
    assert read_token(path).value == SECRET


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("", 0o600, "is none"),
        ("two tokens of some length", 0o600, "is none"),
        (SECRET, 0o644, r"every user can read or write the file \(mode 0644\): chmod 600 /"),
        (SECRET, 0o602, r"mode 0602"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, text, mode, expected):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(InvalidInputError, match=f"token_file={path}.*{expected}") as caught:
        kept_token(path)
    assert SECRET not in str(caught.value)
    assert path.read_text() == text


def test_a_group_may_share_a_token(tmp_path: Path):
    path = tmp_path / "token"
    path.write_text(SECRET)
    path.chmod(0o640)
    assert read_token(path).value == SECRET


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_refused(tmp_path: Path):
    kept_token(tmp_path / "token")
    os.chown(tmp_path / "token", 12345, -1)
    with pytest.raises(InvalidInputError, match="the file is of user 12345"):
        kept_token(tmp_path / "token")


@pytest.mark.parametrize("make", [read_token, kept_token])
def test_a_file_that_cannot_be_is_told(tmp_path: Path, make):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match=r"token_file=.*/file/token: "):
        make(tmp_path / "file" / "token")
    with pytest.raises(InvalidInputError, match="Is a directory"):
        make(tmp_path)


def test_the_environment_gives_a_token_or_its_file(tmp_path: Path, monkeypatch):
    assert token_from_environment() is None
    monkeypatch.setenv("CARLS_TOKEN", SECRET)
    assert token_from_environment() == Token(SECRET, "CARLS_TOKEN")
    monkeypatch.setenv("CARLS_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(InvalidInputError, match="are both set"):
        token_from_environment()
    monkeypatch.delenv("CARLS_TOKEN")
    with pytest.raises(InvalidInputError, match=f"^CARLS_TOKEN_FILE={tmp_path}/token: .*No such"):
        token_from_environment()
    made = kept_token(tmp_path / "token")
    assert token_from_environment() == Token(made.value, f"CARLS_TOKEN_FILE={tmp_path}/token")
    monkeypatch.delenv("CARLS_TOKEN_FILE")
    monkeypatch.setenv("CARLS_TOKEN", "short")
    with pytest.raises(InvalidInputError, match="the token of CARLS_TOKEN is none"):
        token_from_environment()
