"""The doctor before an etcd that really has the trouble."""

from __future__ import annotations

import asyncio

import pytest
from aetcd import rpc

from elasticps.doctor.checks.clock import clock
from elasticps.doctor.checks.etcd import etcd
from elasticps.doctor.finding import Finding, Level
from elasticps.security.files import write_new
from elasticps.store import Store
from tests.chaos.clock import Clock, find_library
from tests.integration.doctor.looks import doctor_rows, setup_of, the, well
from tests.support.etcd import EtcdServer, alarm
from tests.support.nodes import Authority


def beside_versions(findings: list[Finding]) -> list[Finding]:
    """Without what is said of the version: that of the tests may be one to warn of."""
    return [each for each in findings if ": etcd " not in each.saw]


async def test_etcd_that_runs_is_told_with_version_latency_and_quota(tmp_path, shared_etcd):
    findings = await etcd(setup_of(tmp_path, etcd__endpoints=shared_etcd.endpoint))
    assert well(beside_versions(findings))
    assert " ms, no TLS" in findings[0].saw
    assert " of 2.0 GiB" in findings[1].saw


async def test_etcd_that_was_stopped_is_a_fault(tmp_path, etcd_server: EtcdServer):
    etcd_server.kill()
    found = the(Level.FAULT, await etcd(setup_of(tmp_path, etcd__endpoints=etcd_server.endpoint)))
    assert "Connection refused" in found.saw
    assert "systemctl status etcd" in found.fix


async def test_a_frozen_etcd_is_a_fault_and_its_port_is_open(tmp_path, etcd_server: EtcdServer):
    etcd_server.pause()
    found = the(Level.FAULT, await etcd(setup_of(tmp_path, etcd__endpoints=etcd_server.endpoint)))
    etcd_server.resume()
    assert "it takes connections" in found.fix


async def test_two_endpoints_are_a_warning_for_they_outlive_no_more_than_one(
    tmp_path, etcd_cluster
):
    two = ",".join(etcd_cluster.endpoints[:2])
    findings = await etcd(setup_of(tmp_path, etcd__endpoints=two))
    found = the(Level.WARNING, beside_versions(findings))
    assert "three or five" in found.fix


async def test_one_member_of_three_cannot_do_without_the_others(tmp_path, etcd_cluster):
    for member in etcd_cluster.members[1:]:
        member.kill()
    alone = setup_of(tmp_path, etcd__endpoints=etcd_cluster.endpoints[0])
    async with asyncio.timeout(30):
        while not any("no leader" in each.saw for each in await etcd(alone)):
            continue
    assert the(Level.FAULT, await etcd(alone)).fix


async def test_etcd_without_space_is_a_fault_with_the_way_out(tmp_path, etcd_server: EtcdServer):
    async with Store(etcd_server.config()) as store:
        await alarm(store, rpc.AlarmRequest.ACTIVATE)
    found = the(Level.FAULT, await etcd(setup_of(tmp_path, etcd__endpoints=etcd_server.endpoint)))
    assert "NOSPACE" in found.saw
    assert "etcdctl alarm disarm" in found.fix


async def test_etcd_that_is_nearly_full_is_a_warning(tmp_path):
    with EtcdServer(tmp_path / "etcd", flags=("--quota-backend-bytes=20480",)) as server:
        await server.ready()
        findings = await etcd(setup_of(tmp_path, etcd__endpoints=server.endpoint))
        found = the(Level.WARNING, beside_versions(findings))
    assert "of 20.0 KiB" in found.saw
    assert "etcdctl defrag" in found.fix


async def test_a_wrong_password_is_a_fault_that_names_the_user(tmp_path, etcd_server: EtcdServer):
    async with Store(etcd_server.config()) as store:
        for method, request in (
            ("RoleAdd", rpc.AuthRoleAddRequest(name="root")),
            ("UserAdd", rpc.AuthUserAddRequest(name="root", password="right")),
            ("UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root")),
            ("AuthEnable", rpc.AuthEnableRequest()),
        ):
            await store.endpoints.call(
                lambda link, method=method: getattr(link.auth, method), request
            )
    write_new(tmp_path / "password", b"wrong\n")
    wrong = setup_of(
        tmp_path,
        etcd__endpoints=etcd_server.endpoint,
        etcd__user="root",
        etcd__password_file=str(tmp_path / "password"),
    )
    found = the(Level.FAULT, await etcd(wrong))
    assert "etcdctl user get root" in found.fix


async def test_another_authority_than_etcds_is_a_fault(tmp_path):
    authority, other = Authority(tmp_path / "certs"), Authority(tmp_path / "others")
    signed = authority.node("etcd", "127.0.0.1")
    flags = (f"--cert-file={signed.cert}", f"--key-file={signed.key}")
    with EtcdServer(tmp_path / "etcd", flags=flags, scheme="https") as server:
        await server.ready()
        trusting = setup_of(tmp_path, etcd__endpoints=server.endpoint, etcd__ca=str(authority.ca))
        findings = await etcd(trusting)
        assert well(beside_versions(findings))
        assert "its certificate is good for 29 days" in findings[-1].saw
        doubting = setup_of(tmp_path, etcd__endpoints=server.endpoint, etcd__ca=str(other.ca))
        found = the(Level.FAULT, await etcd(doubting))
    assert "CERTIFICATE_VERIFY_FAILED" in found.saw
    assert "etcd.ca" in found.fix


async def test_a_clock_that_is_ahead_of_etcds_is_a_warning(tmp_path, shared_etcd):
    """In a process whose clock is 90 s ahead."""
    library = find_library()
    if library is None:
        pytest.skip("libfaketime is not installed")
    faked = Clock(library, tmp_path / "clock")
    faked.jump(90)
    rows = doctor_rows(tmp_path, faked.prefix, f"--etcd={shared_etcd.endpoint}")
    (row,) = [row for row in rows if row["check"] == "clock"]
    assert row["level"] == "warning"
    assert row["saw"].startswith(("90 s ahead of", "89 s ahead of", "91 s ahead of"))
    assert "set-ntp" in row["fix"]
    assert well(await clock(setup_of(tmp_path, etcd__endpoints=shared_etcd.endpoint)))
