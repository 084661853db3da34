"""What docs/security.md tells an operator to type is what the commands take, and fits together."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest

from elasticps.cli.main import cli, main
from elasticps.daemon.settings import SETTINGS
from elasticps.security.tokens import Role, TokenFile
from tests.support.daemon_command import config

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def commands(first: str) -> list[list[str]]:
    """The page's command lines that begin with ``elasticps`` and ``first``."""
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [line[1:] for line in lines if line[:2] == ["elasticps", first]]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELASTICPS_CONFIG", "/dev/null")


def test_files_that_the_page_makes_are_those_that_its_daemon_takes():
    for command in (*commands("certs"), *commands("token")):
        assert main(command) == 0
    (given,) = commands("daemon")
    made = config(*given[1:])
    assert made.security is not None
    assert (made.node, made.http, made.etcd.tls) == ("a", ("10.0.0.7", 7400), True)
    entry = TokenFile(Path("tokens.json")).find(Path("alice.token").read_text().strip())
    assert entry is not None
    assert (entry.role, entry.expires_unix is not None) == (Role.SUBMIT, True)
    assert entry.expires_unix is None or entry.expires_unix > time.time() + 89 * 86_400


def test_every_variable_that_the_page_names_is_one():
    named = set(re.findall(r"ELASTICPS_[A-Z_]+", PAGE.read_text()))
    known = {str(getattr(option, "envvar", None)) for option in cli.params}
    known |= {setting.variable_name for setting in SETTINGS}
    assert named
    assert named <= known
