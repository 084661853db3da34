"""The judge is judged: given what is bad, each tool says so, and so does the verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.audit import __main__ as audit
from tests.audit import tools
from tests.audit.tools import Ran, Unjudged, read_report
from tests.audit.verdict import FIELDS, off

GOOD = {
    "ruff": 0,
    "mypy": 0,
    "import_contract": 0,
    "bandit_high": 0,
    "secret_leaks": 0,
    "systemd_exposure_daemon": 1.5,
    "systemd_exposure_worker": 1.2,
    "bad_inputs_tried": 300,
    "bad_inputs_wrong": 0,
}
LAYERS = """
[importlinter]
root_package = acme

[importlinter:contract:1]
name = one knows nothing of two
type = forbidden
source_modules = acme.one
forbidden_modules = acme.two
"""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """``folder(**{name: text})``: the files of a small project; ``__`` in a name is a slash."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


# -- each tool on what is bad, and on what is not -------------------------------------------------


def test_ruff_counts_what_it_finds(folder: Callable[..., Path]) -> None:
    root = folder(a_dot_py="import os\nimport sys\n")
    assert tools.ruff(root) == 2
    assert tools.ruff(folder(a_dot_py="x = 1\n")) == 0


def test_mypy_counts_what_it_finds(folder: Callable[..., Path]) -> None:
    root = folder(a_dot_py="x: int = 'text'\ny: str = 1\n")
    assert tools.mypy(root, "a.py") == 2
    assert tools.mypy(folder(a_dot_py="x: int = 1\n"), "a.py") == 0
    with pytest.raises(Unjudged, match="mypy exited with 2"):
        tools.mypy(root, "none.py")


def test_a_broken_contract_is_counted_and_one_that_is_absent_is_no_pass(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(
        acme__init_dot_py="",
        acme__one_dot_py="import acme.two\n",
        acme__two_dot_py="",
        _dot_importlinter=LAYERS,
    )
    (root / "acme" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(root))
    assert tools.import_contract(root) == 1
    (root / "acme" / "one.py").write_text("")
    assert tools.import_contract(root) == 0
    (root / ".importlinter").unlink()
    with pytest.raises(Unjudged, match="no contracts"):
        tools.import_contract(root)


def test_bandit_counts_the_high_ones_alone(folder: Callable[..., Path]) -> None:
    root = folder(
        code__bad_dot_py="import subprocess\nsubprocess.run(input(), shell=True)\nassert 1\n"
    )
    assert tools.bandit_high(root, "code") == 1
    (root / "code" / "bad.py").write_text("assert 1\n")
    assert tools.bandit_high(root, "code") == 0
    (root / "code" / "bad.py").write_text("def (")
    with pytest.raises(Unjudged, match="not read everything"):
        tools.bandit_high(root, "code")
    with pytest.raises(Unjudged, match="not read everything"):
        tools.bandit_high(root, "nothing-is-here")


needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT TESTED: systemd-analyze is absent, units were not looked at",
)


@needs_systemd_analyze
def test_a_unit_that_is_open_to_all_is_far_over_the_limit(folder: Callable[..., Path]) -> None:
    unit = folder() / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert tools.exposure(unit) > 9
    assert off({**GOOD, "systemd_exposure_worker": tools.exposure(unit)})
    with pytest.raises(Unjudged, match="systemd-analyze security"):
        tools.exposure(unit.with_name("none.service"))


@needs_systemd_analyze
def test_a_unit_with_a_fault_is_no_sound_one(folder: Callable[..., Path], tmp_path: Path) -> None:
    unit = folder() / "faulty.service"
    unit.write_text("[Service]\nExecStart=/nonesuch\nNoSuchKey=1\n")
    with pytest.raises(Unjudged, match="verify"):
        tools.verify([unit])
    units = tmp_path / "units"
    units.mkdir()
    tools.units_are_sound(units)


TABLE = """
import pytest
pytestmark = pytest.mark.bad_input

@pytest.mark.parametrize("row", range(5))
def test_rows(row, record_property):
    record_property("secret_leaks", 3)
    if row == 4:
        pytest.skip("not here")
    assert row != 2

@pytest.fixture
def broken():
    yield
    raise OSError

def test_of_a_fixture_that_breaks(broken):
    assert False
"""
SETTINGS = "[pytest]\nmarkers = bad_input: x\nfilterwarnings = error:record_property\n"


def test_rows_that_fail_are_wrong_and_rows_that_are_skipped_are_not_tried(
    folder: Callable[..., Path],
) -> None:
    root = folder(test_table_dot_py=TABLE, pytest_dot_ini=SETTINGS)
    made = tools.tests(root, "-m", "bad_input")
    assert (made.ran, len(made.failed), len(made.skipped)) == (5, 2, 1)
    assert made.failed["test_table::test_rows[2]"] == "assert 2 != 2"
    assert made.told == {"secret_leaks": "3"}


@pytest.mark.parametrize("source", ["def test(", "import a_module_that_is_not_there"])
def test_a_table_that_cannot_be_read_is_no_table(folder: Callable[..., Path], source: str) -> None:
    root = folder(test_table_dot_py=source, pytest_dot_ini=SETTINGS)
    with pytest.raises(Unjudged, match="pytest exited with 2"):
        tools.tests(root)


def test_no_rows_at_all_are_no_pass(folder: Callable[..., Path]) -> None:
    root = folder(test_table_dot_py="def test_other(): pass", pytest_dot_ini=SETTINGS)
    with pytest.raises(Unjudged, match="pytest exited with 5"):
        tools.tests(root, "-m", "bad_input")
    assert read_report("<testsuites/>").ran == 0


def test_a_tool_that_is_absent_or_breaks_off_is_not_counted(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "BIN", Path("/nonesuch"))
    with pytest.raises(Unjudged, match="was not run"):
        tools.ruff(folder())
    for code, out in ((1, "[]"), (2, ""), (0, '[{"code": "E501"}]')):
        monkeypatch.setattr(tools, "run", lambda *_, code=code, out=out, **__: Ran(code, out))
        with pytest.raises(Unjudged):
            tools.ruff(folder())


ASKED = {
    "found": (1, '{"dependencies": [{"name": "a", "vulns": [{"id": "X"}, {"id": "Y"}]}]}', "", 2),
    "found none": (0, '{"dependencies": [{"name": "a", "vulns": []}]}', "", 0),
    "skipped all": (0, '{"dependencies": [{"name": "a", "skip_reason": "editable"}]}', "", None),
    "not reachable": (1, "", "ConnectionError: Max retries exceeded", None),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_advisory_service_that_nobody_reaches_has_found_nothing_good(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err, count = ASKED[name]
    monkeypatch.setattr(tools, "run", lambda *_, **__: Ran(code, out, err))
    assert tools.pip_audit(Path()) == count


# -- the verdict ----------------------------------------------------------------------------------


def test_what_is_good_is_not_off() -> None:
    assert off(GOOD) == []
    assert tuple(GOOD) == FIELDS


@pytest.mark.parametrize("name", FIELDS)
def test_any_count_that_is_off_or_missing_is_told(name: str) -> None:
    bad = 0 if name == "bad_inputs_tried" else GOOD[name] + 1
    assert [told.split()[0] for told in off({**GOOD, name: bad})] == [name]
    assert off({**GOOD, name: None}) == [f"{name} was not counted"]
    assert off({key: count for key, count in GOOD.items() if key != name})
    assert off({**GOOD, "more": 0}) == ["more is no field"]


@pytest.fixture
def all_is_well(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Tools that have found nothing, in place of the real ones."""
    rows = "".join(f'<testcase classname="t" name="r{number}"/>' for number in range(300))
    canary = '<testcase name="c"><properties><property name="secret_leaks" value="0"/></properties>'
    report = read_report(f"<testsuite>{rows}{canary}</testcase></testsuite>")
    monkeypatch.setattr(tools, "tests", lambda *_: report)
    for name in ("ruff", "mypy", "import_contract", "bandit_high"):
        monkeypatch.setattr(tools, name, lambda *_: 0)
    monkeypatch.setattr(tools, "pip_audit", lambda *_: None)
    monkeypatch.setattr(tools, "units_are_sound", lambda *_: None)
    monkeypatch.setattr(tools, "exposure", lambda *_: 1.1)
    return monkeypatch


def test_the_last_line_is_one_object_of_exactly_these_fields(
    all_is_well: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main() == 0
    out = capsys.readouterr().out
    assert tuple(json.loads(out.splitlines()[-1])) == FIELDS
    assert "NOT ASKED: its advisory service is not reachable" in out


def break_off(*_: object) -> int:
    raise Unjudged("it broke off")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ruff", lambda *_: 1),
        ("mypy", break_off),
        ("import_contract", lambda *_: 2),
        ("bandit_high", lambda *_: 1),
        ("pip_audit", lambda *_: 1),
        ("pip_audit", break_off),
        ("units_are_sound", break_off),
        ("exposure", lambda *_: 1.6),
        ("tests", break_off),
        ("tests", lambda *_: read_report("<testsuite/>")),
        ("tests", lambda *_: read_report('<testcase name="x"><failure/></testcase>')),
    ],
)
def test_the_audit_fails_where_anything_is_off(
    all_is_well: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    bad: Callable[..., object],
) -> None:
    all_is_well.setattr(tools, name, bad)
    assert audit.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert tuple(json.loads(lines[-1])) == FIELDS
    assert any(line.startswith("OFF: ") for line in lines)
