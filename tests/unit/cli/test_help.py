"""The command line's help, and what is loaded for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from elasticps.cli.main import main
from elasticps.cli.reference import commands
from tests.support.fake_api import job


@pytest.mark.parametrize("path", [(), *(path for path, _ in commands())], ids=" ".join)
def test_help_of_every_command_shows_an_example_as_it_was_written(path, capsys):
    assert main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"(?m)^  Example:\n    .*elasticps {' '.join(path)}", out), out
    assert all(len(row) <= 80 for row in out.splitlines())


def test_help_of_the_group_tells_the_exit_codes(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert re.search(rf"(?m)^    {code}", out)


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["status"], ["logs", "-f", "mnist"]])
def test_heavy_modules_are_not_imported(args, api):
    api.jobs["mnist"] = job("mnist", state="SUCCEEDED")
    check = (
        "import sys\n"
        "from elasticps.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "bad = ['torch', 'grpc', 'aetcd', 'elasticps.server', 'elasticps.worker',\n"
        "       'elasticps.wire', 'elasticps.store']\n"
        "bad += ['aiohttp', 'rich'] if '-' in sys.argv[-1][:1] else []\n"
        "sys.exit(code or ', '.join(name for name in bad if name in sys.modules) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", check, *args],
        env={**os.environ, "ELASTICPS_API": api.url},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"elasticps \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_no_command_at_all_shows_the_help(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_script_of_the_entry_point_runs():
    command = Path(sys.executable).with_name("elasticps")
    done = subprocess.run([command, "nodes", "--nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--nope" in done.stderr
