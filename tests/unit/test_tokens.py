"""Role tokens: what is kept of them, and when they are good."""

from __future__ import annotations

import hashlib
import time

import pytest

from elasticps.errors import UsageError
from elasticps.security.tokens import Role, TokenFile, create_token, read_tokens, revoke_token


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.json"


def test_only_a_hash_is_kept_in_a_file_of_the_owners(path):
    token = create_token(path, "alice", Role.SUBMIT)
    assert token not in path.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 43


def test_a_token_is_found_by_itself_alone(path):
    alice, bob = create_token(path, "alice", Role.SUBMIT), create_token(path, "bob", Role.ADMIN)
    tokens = TokenFile(path)
    assert [tokens.find(each).name for each in (alice, bob)] == ["alice", "bob"]
    for other in (
        "",
        alice[:-1],
        alice + "x",
        "\udcff",
        hashlib.sha256(alice.encode()).hexdigest(),
    ):
        assert tokens.find(other) is None


def test_a_revoked_token_is_refused_from_then_on(path):
    token = create_token(path, "alice", Role.READ)
    tokens = TokenFile(path)
    revoke_token(path, "alice")
    assert tokens.find(token) is None
    later = create_token(path, "alice", Role.ADMIN)
    assert tokens.find(later).role is Role.ADMIN
    with pytest.raises(UsageError, match="there is no token 'carol'"):
        revoke_token(path, "carol")


def test_an_expired_token_is_refused(path, monkeypatch):
    token = create_token(path, "alice", Role.READ, days=1)
    tokens = TokenFile(path)
    assert tokens.find(token)
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert tokens.find(token) is None


@pytest.mark.parametrize("damage", ["nonsense", "open to all", "gone"])
def test_where_the_file_cannot_be_read_nobody_is_let_in(path, damage):
    token = create_token(path, "alice", Role.READ)
    tokens = TokenFile(path)
    if damage == "nonsense":
        path.write_text("{")
    elif damage == "open to all":
        path.write_text(path.read_text() + "\n")
        path.chmod(0o644)
    else:
        path.unlink()
    assert tokens.find(token) is None
    with pytest.raises(UsageError):
        TokenFile(path)


def test_names_are_taken_once(path):
    create_token(path, "alice", Role.READ)
    with pytest.raises(UsageError, match="there is a token alice"):
        create_token(path, "alice", Role.ADMIN)
    with pytest.raises(UsageError, match="no name"):
        create_token(path, "<script>", Role.READ)
    assert [entry.name for entry in read_tokens(path)] == ["alice"]


def test_each_role_includes_those_before_it():
    allowed = {(mine, asked) for mine in Role for asked in Role if mine.includes(asked)}
    read, submit, admin = Role
    assert allowed == {
        (read, read),
        (submit, read),
        (submit, submit),
        *((admin, asked) for asked in Role),
    }
