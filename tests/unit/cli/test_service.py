"""``elasticps service``: what it would do, what it does below another root, and what it keeps."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from elasticps.cli.main import main
from elasticps.daemon.service import FILES, install_steps, uninstall_steps

PYTHON = "/opt/elasticps/bin/python3"


@pytest.fixture(autouse=True)
def installed_for_all(monkeypatch):
    """The Python of the tests may lie where no service would see it."""
    monkeypatch.setattr("elasticps.cli.service.check_python", lambda _: None)
    monkeypatch.setattr(sys, "executable", PYTHON)


@pytest.fixture
def service(capsys, tmp_path):
    """Runs ``elasticps service`` below a folder: exit code and output."""

    def run(*args: str) -> tuple[int, str]:
        code = main(["service", *args, "--root", str(tmp_path)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out + err

    return run


def below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("args", [(), ("--dry-run",)])
def test_install_says_what_it_would_do_and_does_nothing(service, tmp_path, args):
    code, out = service("install", *args)
    assert code == 0
    for file in FILES:
        assert f"would write {tmp_path / file.place}\n" in out
    assert out.endswith("nothing was changed; --yes does it\n")
    assert below(tmp_path) == set()


def test_install_puts_every_file_in_place_and_uninstall_takes_them_away(service, tmp_path):
    assert service("install", "--yes")[0] == 0
    assert below(tmp_path) == {file.place for file in FILES}
    unit = (tmp_path / "etc/systemd/system/elasticpsd.service").read_text()
    assert f"ExecStart={PYTHON} -P -m elasticps daemon\n" in unit
    code, out = service("uninstall")
    assert code == 0
    assert "would remove" in out
    assert len(below(tmp_path)) == len(FILES)
    assert service("uninstall", "--yes")[0] == 0
    assert below(tmp_path) == {"etc/elasticps/elasticps.toml"}
    assert service("uninstall", "--yes") == (
        0,
        f"keep {tmp_path}/etc/elasticps/elasticps.toml (your own)\n",
    )


def test_install_replaces_changed_units_and_keeps_the_operators_configuration(service, tmp_path):
    service("install", "--yes")
    unit, own = (tmp_path / f"etc/{name}" for name in ("systemd/system/elasticpsd.service",
                                                       "elasticps/elasticps.toml"))  # fmt: skip
    wanted = unit.read_text()
    unit.write_text("[Service]\n")
    own.write_text("workers = 2\n")
    code, out = service("status")
    assert code == 1
    assert f"different  {unit}\n" in out
    assert f"your own   {own}\n" in out
    code, out = service("install", "--yes")
    assert code == 0
    assert f"replace {unit}\n" in out
    assert f"keep {own} (your own)\n" in out
    assert (unit.read_text(), own.read_text()) == (wanted, "workers = 2\n")
    assert service("status")[0] == 0


def test_status_is_for_programs_too(service, tmp_path, capsys):
    service("install", "--yes")
    (tmp_path / FILES[0].place).unlink()
    code, out = service("status", "--json")
    assert code == 1
    found = {file["path"]: file["found"] for file in json.loads(out)["files"]}
    assert found.pop(str(tmp_path / FILES[0].place)) == "missing"
    assert set(found.values()) == {"same"}


def test_installed_files_are_readable_and_owned_by_who_may_write_them(service, tmp_path):
    old = os.umask(0o077)
    try:
        service("install", "--yes")
    finally:
        os.umask(old)
    assert {(tmp_path / file.place).stat().st_mode & 0o777 for file in FILES} == {0o644}


def test_a_worker_gets_all_cores_but_one(tmp_path):
    for cores, quota in ((1, "100%"), (2, "100%"), (64, "6300%")):
        texts = [str(getattr(step, "text", "")) for step in install_steps(tmp_path, PYTHON, cores)]
        assert sum(f"CPUQuota={quota}\n" in text for text in texts) == 1


def test_the_machine_itself_is_told(tmp_path):
    steps = [str(step) for step in install_steps(Path("/"), PYTHON)]
    assert steps[-3:] == [
        "run systemd-sysusers elasticps.conf",
        "run systemd-tmpfiles --create elasticps.conf",
        "run systemctl daemon-reload",
    ]
    assert not any("run" in str(step).split()[0] for step in install_steps(tmp_path, PYTHON))
    assert list(uninstall_steps(tmp_path)) == []


def test_yes_and_dry_run_contradict_each_other(service):
    code, out = service("install", "--yes", "--dry-run")
    assert code == 2
    assert "--dry-run" in out


def test_a_python_that_the_services_user_cannot_reach_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    closed = Path.home() / ".elasticps-test-python"
    monkeypatch.setattr(sys, "executable", "/tmp/venv/bin/python")
    assert main(["service", "install", "--root", str(tmp_path)]) == 2
    assert "a /tmp of its own" in capsys.readouterr().err
    closed.mkdir(mode=0o700, exist_ok=True)
    try:
        monkeypatch.setattr(sys, "executable", str(closed / "python"))
        assert main(["service", "install", "--root", str(tmp_path)]) == 2
        assert "closed to others" in capsys.readouterr().err
    finally:
        closed.rmdir()
