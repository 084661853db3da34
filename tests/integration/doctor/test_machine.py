"""The doctor on a machine that really is in the trouble."""

from __future__ import annotations

import os
import pwd
import resource
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from elasticps.api.plugins import CODECS
from elasticps.doctor.checks.addresses import addresses
from elasticps.doctor.checks.certificates import certificates
from elasticps.doctor.checks.configuration import configuration
from elasticps.doctor.checks.files import files
from elasticps.doctor.checks.folders import folders
from elasticps.doctor.checks.packages import plugins
from elasticps.doctor.checks.ports import ports
from elasticps.doctor.finding import Finding, Level
from elasticps.doctor.machine import CHECKS, examine
from elasticps.doctor.service_user import ServiceUser, service_user
from elasticps.doctor.setup import Setup
from elasticps.security.tokens import Role, create_token
from tests.chaos.clock import Clock, find_library
from tests.integration.doctor.looks import doctor_rows, secured, setup_of, the, well
from tests.support.nodes import Authority

DAY_S = 86_400
HOLDER = """
import socket, time
held = socket.create_server(("127.0.0.1", 0))
print(held.getsockname()[1], flush=True)
time.sleep(999)
"""


async def test_a_machine_that_is_well_has_no_fault(tmp_path, shared_etcd):
    authority = Authority(tmp_path / "certs")
    create_token(tmp_path / "tokens.json", "root", Role.ADMIN)
    setup = secured(
        tmp_path,
        authority.node("a"),
        tokens=str(tmp_path / "tokens.json"),
        etcd__endpoints=shared_etcd.endpoint,
    )
    told: list[str] = []
    rows = await examine(setup, told.append)
    assert [row for row in rows if row.level is Level.FAULT] == []
    assert [row.check for row in rows if row.level is Level.UNCHECKED] == []
    assert {row.check for row in rows} == {name for name, _ in CHECKS}
    assert len(told) == len(CHECKS)


async def test_a_daemon_that_would_not_start_is_a_fault_in_its_own_words(tmp_path):
    found = the(Level.FAULT, await configuration(setup_of(tmp_path, workers="-3")))
    assert "workers" in found.saw
    assert "0 to" in found.saw


async def test_a_port_that_another_process_has_is_a_fault_with_its_name(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        port = holder.stdout.readline().strip()
        found = the(Level.FAULT, await ports(setup_of(tmp_path, http=f"127.0.0.1:{port}")))
    finally:
        holder.kill()
        holder.communicate()
    assert f"taken by process {holder.pid}" in found.saw
    assert "--http" in found.fix


async def test_the_port_of_each_shard_server_is_looked_at(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        second = held.getsockname()[1]
        setup = setup_of(tmp_path, data=f"127.0.0.1:{second - 1}", shard_servers="2")
        saw = [found.saw for found in await ports(setup) if found.saw.startswith("data")]
    assert len(saw) == 2
    assert f"data 127.0.0.1:{second} is taken" in saw[1]


async def test_a_port_of_this_nodes_own_daemon_is_well(tmp_path):
    """The daemon is whoever listens at control.sock in its runtime_dir: here this process."""
    (tmp_path / "runtime_dir").mkdir()
    with socket.socket(socket.AF_UNIX) as control, socket.create_server(("127.0.0.1", 0)) as http:
        control.bind(str(tmp_path / "runtime_dir" / "control.sock"))
        control.listen()
        taken = setup_of(tmp_path, http=f"127.0.0.1:{http.getsockname()[1]}")
        assert well(await ports(taken))


@pytest.mark.parametrize(
    ("flags", "saw", "fix"),
    [
        ({"http": "203.0.113.9:7400"}, "no address of this machine", "--http"),
        ({"data": "no-such-host.invalid:7401"}, "no-such-host.invalid", "--data"),
        ({"etcd__endpoints": "203.0.113.1:2379", "data": "127.0.0.1:0"}, "loopback", "--data"),
        ({"etcd__endpoints": "203.0.113.1:2379", "http": "0.0.0.0:7400"}, "0.0.0.0", "back to"),
    ],
)
async def test_an_address_that_others_cannot_reach_is_a_fault(tmp_path, flags, saw, fix):
    findings = [each for each in await addresses(setup_of(tmp_path, **flags)) if saw in each.saw]
    assert {each.level for each in findings} == {Level.FAULT}
    assert any(fix in each.fix for each in findings)


@pytest.mark.parametrize(
    ("limit", "value", "check", "level", "fix"),
    [
        (resource.RLIMIT_NOFILE, 200, "open files", "fault", "LimitNOFILE"),
        (resource.RLIMIT_NOFILE, 1024, "open files", "warning", "LimitNOFILE"),
        (resource.RLIMIT_MEMLOCK, 1 << 16, "locked memory", "ok", ""),
    ],
)
def test_a_lowered_limit_is_seen(tmp_path, limit, value, check, level, fix):
    def lower() -> None:
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))

    rows = doctor_rows(tmp_path, (), "--etcd=127.0.0.1:1", preexec_fn=lower)
    (row,) = [row for row in rows if row["check"] == check]
    assert row["level"] == level
    assert fix in row["fix"]


async def test_a_folder_that_is_a_file_and_a_socket_that_is_too_long_are_faults(tmp_path):
    (tmp_path / "state_dir").write_text("")
    found = the(Level.FAULT, await folders(setup_of(tmp_path)))
    assert "is no folder" in found.saw
    long = tmp_path / ("d" * 100)
    found = the(Level.FAULT, await folders(setup_of(tmp_path / "x", runtime_dir=str(long))))
    assert "107 bytes" in found.saw
    assert "runtime_dir" in found.fix


def test_a_folder_that_this_user_may_not_write_to_is_a_fault(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    code = (
        "import asyncio, os, pathlib\n"
        "from tests.integration.doctor.looks import setup_of\n"
        "from elasticps.doctor.checks.folders import folders\n"
        "os.setuid(65534)\n"
        "print([each.saw for each in asyncio.run(folders(setup_of(pathlib.Path('/root/x'))))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "may not write to" in done.stdout, done.stderr


async def test_keys_that_others_may_read_and_files_that_are_absent_are_faults(tmp_path):
    made = Authority(tmp_path / "certs").node("a")
    made.key.chmod(0o644)
    found = the(Level.FAULT, await files(secured(tmp_path, made)))
    assert "0644" in found.saw
    assert f"chmod 600 {made.key}" in found.fix
    made.key.unlink()
    found = the(Level.FAULT, await files(secured(tmp_path, made)))
    assert "No such file" in found.saw


async def test_root_is_told_what_the_services_user_may_not_read(tmp_path, monkeypatch):
    """By owner, group and mode of the file and of the folders above it, whoever looks."""
    made = Authority(tmp_path / "certs").node("a")
    own = made.key.stat()
    reader = ServiceUser(name="elasticps", uid=own.st_uid + 1, gids=frozenset({own.st_gid + 1}))
    monkeypatch.setattr(Setup, "runs_as", lambda _: reader)
    setup = secured(tmp_path, made)
    for folder in (tmp_path, tmp_path / "certs"):
        folder.chmod(0o711)

    found = the(Level.FAULT, await files(setup))
    assert "elasticps may not use" in found.saw
    assert f"{made.key} (" in found.saw
    assert "mode 0600" in found.saw
    assert f"chown elasticps {made.key}" in found.fix

    monkeypatch.setattr(Setup, "runs_as", lambda _: replace(reader, gids={own.st_gid}))
    made.key.chmod(0o640)
    assert well(await files(setup))

    (tmp_path / "certs").chmod(0o700)
    found = [each for each in await files(setup) if each.level is Level.FAULT]
    assert len(found) == 3
    assert all(f"may not enter {tmp_path / 'certs'} (" in each.saw for each in found)
    monkeypatch.setattr(Setup, "runs_as", lambda _: replace(reader, uid=own.st_uid))
    assert well(await files(setup))


async def test_root_is_told_that_the_services_user_may_not_write_to_a_folder(tmp_path, monkeypatch):
    own = tmp_path.stat()
    reader = ServiceUser(name="elasticps", uid=own.st_uid + 1, gids=frozenset())
    monkeypatch.setattr(Setup, "runs_as", lambda _: reader)
    tmp_path.chmod(0o711)
    (tmp_path / "state_dir").mkdir(mode=0o755)
    found = the(Level.FAULT, await folders(setup_of(tmp_path)))
    assert "state_dir" in found.saw
    assert "elasticps may not use" in found.saw


def test_the_services_user_is_that_of_the_unit_and_its_drop_ins(tmp_path, monkeypatch):
    unit = tmp_path / "elasticpsd.service"
    assert service_user(unit) is None
    unit.write_text("[Service]\nUser=nobody-of-that-name\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert service_user(unit) is None
    drop_in = tmp_path / "elasticpsd.service.d" / "user.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nUser = nobody\n")
    found = service_user(unit)
    assert found is not None
    assert (found.name, found.uid) == ("nobody", pwd.getpwnam("nobody").pw_uid)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert service_user(unit) is None


async def test_another_nodes_certificate_and_another_authoritys_are_faults(tmp_path):
    authority, other = Authority(tmp_path / "certs"), Authority(tmp_path / "others")
    found = the(Level.FAULT, await certificates(secured(tmp_path, authority.node("b"))))
    assert "is of node b, this is node a" in found.saw
    strange = setup_of(tmp_path, tls__ca=str(other.ca), tls__cert=str(authority.node("a").cert))
    found = the(Level.FAULT, await certificates(strange))
    assert "has signed it" in found.saw


async def test_a_host_that_the_certificate_does_not_name_is_a_warning(tmp_path):
    made = Authority(tmp_path / "certs").node("a", "10.0.0.7")
    found = the(Level.WARNING, await certificates(secured(tmp_path, made)))
    assert "does not name 127.0.0.1" in found.saw
    assert "certs issue DIR a --host 127.0.0.1" in found.fix


async def test_a_certificate_that_ends_soon_is_a_warning(tmp_path):
    made = Authority(tmp_path / "certs").node("a", days=3)
    found = the(Level.WARNING, await certificates(secured(tmp_path, made)))
    assert "good for 2 days" in found.saw


async def test_a_certificate_that_has_ended_is_a_fault_with_the_way_to_a_new_one(tmp_path):
    """Both are made by ``elasticps certs`` in a process whose clock is a year and more behind."""
    library = find_library()
    if library is None:
        pytest.skip("libfaketime is not installed")
    faked = Clock(library, tmp_path / "clock")
    faked.jump(-400 * DAY_S)
    certs = tmp_path / "certs"
    command = ("certs", "init", str(certs), "--days=390", "--node=a=127.0.0.1")
    subprocess.run(
        [*faked.prefix, sys.executable, "-m", "elasticps", *command], check=True, timeout=60
    )
    setup = setup_of(tmp_path, tls__ca=str(certs / "ca.pem"), tls__cert=str(certs / "a.pem"))
    faults = [each for each in await certificates(setup) if each.level is Level.FAULT]
    assert len(faults) == 2
    assert "ended 10 days ago" in faults[0].saw
    assert "ended 35 days ago" in faults[1].saw
    assert "elasticps certs issue DIR a --host 127.0.0.1" in faults[1].fix


async def test_a_plugin_that_cannot_be_imported_is_a_warning(tmp_path, install):
    install("broken-codec", "broken_codec", "1 / 0", {CODECS: {"broken": "broken_codec:made"}})
    found = the(Level.WARNING, await plugins(setup_of(tmp_path)))
    assert "ZeroDivisionError" in found.saw
    assert "elasticps plugins check broken" in found.fix


async def test_a_check_that_fails_itself_costs_no_other(tmp_path, monkeypatch):
    async def broken(_: Setup) -> list[Finding]:
        raise ZeroDivisionError("by a bug")

    monkeypatch.setattr("elasticps.doctor.machine.CHECKS", (("one", broken), ("two", folders)))
    rows = await examine(setup_of(tmp_path), lambda _: None)
    assert rows[0].level is Level.UNCHECKED
    assert "by a bug" in rows[0].saw
    assert {row.check for row in rows} == {"one", "two"}
