"""The command line against a fake of the HTTP API."""

from __future__ import annotations

import os

import pytest

from elasticps.cli.main import main
from tests.support.fake_api import FakeApi


@pytest.fixture
def api():
    with FakeApi() as fake:
        yield fake


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ELASTICPS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def elasticps(api, capsys):
    """Runs a command on the fake API: its exit code, its stdout and its stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        code = main(["--api", api.url, *map(str, args)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text("")
    return path
