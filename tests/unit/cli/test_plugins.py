"""`elasticps plugins`: one plugin is described, checked apart, and begun, without a daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from elasticps.api.groups import TABLE, group_named, group_of
from elasticps.api.plugins import GROUPS, OPTIMIZERS, STRATEGIES
from elasticps.cli.main import main
from elasticps.cli.new_plugin import ENTRY_OF
from elasticps.errors import PluginError, UsageError
from tests.support.distributions import Install, install

__all__ = ["install"]

GOOD = """
    import torch
    from elasticps import TorchOptimizer

    plugin = TorchOptimizer(torch.optim.NAdam)
"""


# -- groups -------------------------------------------------------------------------------------


def test_every_group_has_a_row_with_a_contract_of_some_version() -> None:
    assert [group.name for group in TABLE] == list(GROUPS)
    for group in TABLE:
        assert group.load_contract().api_version >= 1


@pytest.mark.parametrize("asked", ["optimizer", "optimizers", "elasticps.optimizers"])
def test_a_group_has_three_names(asked: str) -> None:
    assert group_named(asked).name == OPTIMIZERS


def test_an_unknown_group_suggests_the_near_one() -> None:
    with pytest.raises(UsageError) as caught:
        group_named("optimisers")
    assert caught.value.hint == "did you mean optimizers?"


def test_a_name_of_two_groups_wants_its_group(install: Install) -> None:
    entries = {group: {"twice": "acme:plugin"} for group in (OPTIMIZERS, STRATEGIES)}
    install("acme", "acme", GOOD, entries)
    with pytest.raises(PluginError) as caught:
        group_of("twice", None)
    assert caught.value.limit == "optimizers, strategies"
    assert group_of("twice", "optimizers").name == OPTIMIZERS


# -- info ---------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    assert main(["plugins", *args, "--json"]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_info_shows_options_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    seen = told(capsys, "info", "adamw")
    assert seen["group"] == "optimizers"
    assert seen["target"] == "elasticps.optimizers.builtin:adamw"
    assert seen["api_version"] == seen["known_api_version"] == 1
    assert {"name": "lr", "default": "0.001", "required": False} in seen["options"]  # type: ignore[operator]
    assert "Adam" in str(seen["about"])
    assert main(["plugins", "info", "adamw"]) == 0
    out = capsys.readouterr().out
    assert "lr" in out
    assert all(len(row) <= 80 for row in out.splitlines())


def test_info_of_a_class_shows_what_must_be_given(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
        from elasticps import Strategy

        class Paced(Strategy):
            '''Waits for nobody.

            And more.
            '''
            def __init__(self, h, outer="sgd"): ...
            async def step(self, step): ...
    """
    install("acme", "acme", source, {STRATEGIES: {"paced": "acme:Paced"}})
    seen = told(capsys, "info", "paced")
    assert seen["about"] == "Waits for nobody."
    assert seen["options"] == [
        {"name": "h", "default": None, "required": True},
        {"name": "outer", "default": "'sgd'", "required": False},
    ]


def test_info_imports_that_plugin_alone(install: Install) -> None:
    install("acme-bad", "acme_bad", "raise OSError", {OPTIMIZERS: {"bad": "acme_bad:plugin"}})
    install("acme-good", "acme_good", GOOD, {OPTIMIZERS: {"good": "acme_good:plugin"}})
    assert main(["plugins", "info", "good"]) == 0
    assert "acme_bad" not in sys.modules


def test_info_of_a_broken_plugin_says_whose_it_is(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme-bad", "acme_bad", "raise OSError", {OPTIMIZERS: {"bad": "acme_bad:plugin"}})
    assert main(["plugins", "info", "bad"]) == 2
    assert "plugin bad of acme-bad 1.0 (acme_bad:plugin)" in capsys.readouterr().err


def test_info_of_what_is_no_plugin_says_so(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme-bad", "acme_bad", "plugin = 5", {STRATEGIES: {"bad": "acme_bad:plugin"}})
    assert main(["plugins", "info", "bad"]) == 2
    said = "plugin bad of acme-bad 1.0 (acme_bad:plugin): is not a Strategy"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "check"])
def test_an_unknown_name_is_a_wrong_question(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", command, "adanw"]) == 2
    assert "did you mean adamw?" in capsys.readouterr().err


# -- check --------------------------------------------------------------------------------------


def test_check_passes_what_keeps_its_contract(capsys: pytest.CaptureFixture[str]) -> None:
    seen = told(capsys, "check", "adamw:lr=0.01")
    assert seen["reason"] == ""
    assert "replicas are equal bit for bit" in seen["passed"]  # type: ignore[operator]


STEP = "class Odd(torch.optim.SGD):\n    def step(self, closure=None):\n        {}\n"
BASE = "import os, time, torch\nfrom elasticps import TorchOptimizer\n"
PLUGIN = "plugin = TorchOptimizer(Odd)\n"
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("raise RuntimeError('no such GPU')", "RuntimeError: no such GPU", marks=LONG),
        ("import os\nos.kill(os.getpid(), 11)", "its process was killed by SIGSEGV"),
        ("while True: pass", "loads as its contract: did not end within 3 s"),
        (BASE + STEP.format("os._exit(3)") + PLUGIN, "its process exited with code 3"),
        pytest.param(
            BASE + STEP.format("raise MemoryError('x')") + PLUGIN, "MemoryError: x", marks=LONG
        ),
    ],
    ids=["raises", "crashes", "hangs", "exits late", "step raises"],
)
def test_check_outlives_the_plugin_and_says_what_is_wrong(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    reason: str,
) -> None:
    site = install("acme-odd", "acme_odd", source, {OPTIMIZERS: {"odd": "acme_odd:plugin"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert main(["plugins", "check", "odd", "--timeout", "3", "--json"]) == 1
    out, err = capsys.readouterr()
    seen = json.loads(out)
    assert reason in seen["reason"]
    assert "plugin odd of acme-odd 1.0 (acme_odd:plugin)" in seen["reason"]
    assert reason in err
    assert "acme_odd" not in sys.modules


# -- new ----------------------------------------------------------------------------------------


def offline(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind == "codec" else pytest.mark.long) for kind in ENTRY_OF],
)
def test_new_package_passes_its_own_tests_once_installed(kind: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    assert main(["plugins", "new", "my-own", "--kind", kind, "--directory", str(package)]) == 0
    assert (package / "LICENSE").exists()
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    try:
        offline("-m", "pip", "install", *flags, "-e", package, cwd=tmp_path)
        assert "passed" in offline("-m", "pytest", "-q", cwd=package)
    finally:
        offline("-m", "pip", "uninstall", "--yes", "--quiet", "elasticps-my-own", cwd=tmp_path)


@pytest.mark.parametrize("name", ["My", "a b", "-a", "a_b", ""])
def test_new_refuses_what_is_no_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "new"
    assert (
        main(["plugins", "new", "--kind", "optimizer", "--directory", str(where), "--", name]) == 2
    )
    assert "no name for a plugin" in capsys.readouterr().err
    assert not where.exists()


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    assert main(["plugins", "new", "x", "--kind", "optimizer", "--directory", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]


def test_new_refuses_a_name_whose_package_would_break_an_installed_plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "new"
    asked = ["plugins", "new", "int8", "--directory", str(where), "--kind"]
    assert main([*asked, "codec"]) == 2
    assert "int8 is taken by plugin int8 of elasticps" in capsys.readouterr().err
    assert not where.exists()
    assert main([*asked, "optimizer"]) == 0
