"""A cluster with certificates and tokens: it trains as any other, and lets nobody else in."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from elasticps.core.ids import BlockId, JobKey, NodeId, WorkerId
from elasticps.errors import AccessDenied, PeerUnavailable
from elasticps.security.authority import issue
from elasticps.security.passes import PassIssuer
from elasticps.security.tls import NodeTls, Secured, trusting
from elasticps.security.tokens import Role, create_token, revoke_token
from elasticps.wire.address import Address
from elasticps.wire.connection import connect
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import WorkerHello
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import HelloMeta, PullMeta, encode
from tests.integration.cluster.acts import SCRIPTS, WAIT_S, Training, kill
from tests.integration.cluster.conftest import Script
from tests.integration.cluster.secured import (
    SecretFiles,
    SecuredCluster,
    secured_cluster,
    secured_etcd,
)
from tests.integration.cluster.test_failure_detection import watched
from tests.support.etcd import EtcdServer
from tests.support.nodes import Authority

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SecretFiles:
    return SecretFiles(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def etcd(files: SecretFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        yield secured_etcd(stack, tmp_path_factory.mktemp("secured-etcd"), files)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    etcd: EtcdServer, files: SecretFiles, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SecuredCluster]:
    """n1 and n2, each a machine of its own."""
    directory = tmp_path_factory.mktemp("secured-cluster")
    async with secured_cluster(2, directory, etcd, files) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def training(cluster: SecuredCluster) -> Training:
    """A job with a worker on each node, which trains."""
    training = await cluster.train(max_workers=2)
    await training.is_trained_by("n1", "n2")
    return training


async def job_key(training: Training) -> JobKey:
    local = training.cluster.local
    found = await local.store.get(local.keys.job_spec(training.name))
    assert found is not None
    return JobKey(found.create_revision)


async def data_address(cluster: SecuredCluster, node: str) -> Address:
    record = await cluster.record(node)
    assert record is not None
    return Address.parse(record.servers[0].tcp)


# -- the data plane


async def test_a_job_trains_over_tls_alone(cluster: SecuredCluster, training: Training) -> None:
    await training.goes_on(5)
    for node in ("n1", "n2"):
        address = await data_address(cluster, node)
        plain = await connect(address, timeout_s=WAIT_S)
        hello = encode(HelloMeta(cluster=cluster.local.keys.cluster, caller="1"))
        with pytest.raises(PeerUnavailable):
            await plain.request(Header(Kind.HELLO), hello, timeout_s=WAIT_S)


async def speak(
    cluster: SecuredCluster,
    training: Training,
    *,
    caller: str,
    token: bytes,
    as_node: str | None = None,
    kind: Kind = Kind.PULL,
) -> Status:
    """The status that a shard server answers to a request for the training's block 1."""
    secured = Secured(context=trusting(cluster.files.authority.ca.read_bytes()), name="n1")
    if as_node:
        secured = NodeTls(cluster.files.nodes[as_node]).to_node(NodeId("n1"))
    address = await data_address(cluster, "n1")
    async with await connect(address, timeout_s=WAIT_S, secured=secured) as conn:
        hello = HelloMeta(cluster=cluster.local.keys.cluster, caller=caller, token=token)
        await conn.request(Header(Kind.HELLO), encode(hello), timeout_s=WAIT_S)
        worker = WorkerId(int(caller) if caller.isdigit() else 0)
        header = Header(kind, job=await job_key(training), block=BlockId(1), worker=worker)
        return (await conn.request(header, encode(PullMeta()), timeout_s=WAIT_S)).header.status


async def test_a_session_is_bound_to_the_job_of_its_pass(
    cluster: SecuredCluster, training: Training
) -> None:
    issuer = PassIssuer(cluster.files.nodes["n2"], cluster.local.keys.cluster, NodeId("n2"))
    job = await job_key(training)
    answered = await speak(cluster, training, caller="7", token=issuer.issue("7", job))
    assert answered in (Status.FENCED, Status.BEHIND, Status.UNKNOWN)
    refused = {
        "no pass": b"",
        "another job's": issuer.issue("7", JobKey(job + 1)),
        "another worker's": issuer.issue("8", job),
    }
    for token in refused.values():
        with pytest.raises(PeerUnavailable):
            await speak(cluster, training, caller="7", token=token)
    for kind in (Kind.OP, Kind.PROBE):  # a worker is no replica, and measures no links
        with pytest.raises(PeerUnavailable):
            await speak(cluster, training, caller="7", token=issuer.issue("7", job), kind=kind)
    await training.goes_on(5)


async def test_only_a_node_with_its_certificate_is_a_server(
    cluster: SecuredCluster, training: Training, tmp_path: Path
) -> None:
    issuer = PassIssuer(cluster.files.nodes["n2"], cluster.local.keys.cluster, NodeId("n2"))
    token = issuer.issue("n2/life")
    with pytest.raises(PeerUnavailable):  # the pass alone is not enough
        await speak(cluster, training, caller="n2/life", token=token, kind=Kind.OP)
    with pytest.raises(PeerUnavailable):  # nor another node's
        await speak(
            cluster, training, caller="n3/life", token=issuer.issue("n3/life"), as_node="n2"
        )
    stranger = Authority(tmp_path / "other").node("n2")
    forged = PassIssuer(stranger, cluster.local.keys.cluster, NodeId("n2")).issue("n2/life")
    with pytest.raises(PeerUnavailable):
        await speak(cluster, training, caller="n2/life", token=forged, as_node="n2")
    await training.goes_on(5)


async def test_a_process_that_the_daemon_did_not_start_is_no_worker(
    cluster: SecuredCluster, training: Training
) -> None:
    """Though it may open the socket, and knows a worker's name."""
    job = await training.look()
    uid = next(worker.uid for worker in job.workers if worker.node == "n1")
    socket = cluster.directory / "cluster" / "n1" / "run" / "control.sock"
    heard: list[object] = []
    end = ControlEnd(lambda _, message: heard.append(message), lambda _: None)
    conn = await connect(Address.unix(socket), timeout_s=WAIT_S, dispatcher=end)
    tell(conn, WorkerHello(uid))
    async with asyncio.timeout(WAIT_S):
        await conn._lost.wait()
    assert not heard


# -- the API


async def answer(
    cluster: SecuredCluster, method: str, path: str, **given: object
) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=cluster.files.authority.ca)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{cluster.url}{path}", ssl=context, **given) as response,
    ):
        return response.status, await response.text()


async def test_without_a_token_only_health_is_told(
    cluster: SecuredCluster, training: Training
) -> None:
    assert (await answer(cluster, "GET", "/healthz"))[0] == 200
    assert await answer(cluster, "GET", "/readyz") == (200, '{"ready":true,"reasons":[]}')
    assert (await answer(cluster, "GET", "/metrics"))[0] == 401
    for path in ("status", "jobs", "nodes", "local", "load", f"jobs/{training.name}", "jobs/none"):
        status, text = await answer(cluster, "GET", f"/api/v1/{path}")
        assert status == 401, path
        assert "ELASTICPS_TOKEN_FILE" in text
        assert training.name not in text
    bad = {"Authorization": "Bearer eps_wrong"}
    status, text = await answer(cluster, "GET", "/api/v1/status", headers=bad)
    assert (status, "eps_wrong" in text) == (401, False)


async def test_metrics_are_told_to_who_may_read(
    cluster: SecuredCluster, training: Training
) -> None:
    """In them are the bytes that went over TLS, of plain TCP none, and the certificate's end."""
    await training.goes_on(5)
    proof = {"Authorization": f"Bearer {cluster.files.tokens[Role.READ]}"}
    status, text = await answer(cluster, "GET", "/metrics", headers=proof)
    assert status == 200
    families = text_string_to_metric_families(text)
    received = {
        sample.labels["transport"]: sample.value
        for family in families
        if family.name == "elasticps_received_bytes"
        for sample in family.samples
    }
    assert received["tls"] > 0
    assert received["tcp"] == 0
    (ends,) = re.findall(r"(?m)^elasticps_certificate_expiry_timestamp_seconds (\S+)$", text)
    assert 29 < (float(ends) - time.time()) / 86_400 < 31


async def test_dashboard_is_open_and_says_nothing_until_it_has_a_token(
    cluster: SecuredCluster, training: Training
) -> None:
    status, page = await answer(cluster, "GET", "/")
    assert status == 200
    assert training.name not in page
    found = re.search(r"static/[0-9a-f]+/main.js", page)
    assert found
    assert (await answer(cluster, "GET", f"/{found[0]}"))[0] == 200
    for path in ("/api/v1/whoami", "/api/v1/stream", "/static/../api/v1/status"):
        assert (await answer(cluster, "GET", path))[0] == 401
    for role, token in cluster.files.tokens.items():
        proof = {"Authorization": f"Bearer {token}"}
        status, text = await answer(cluster, "GET", "/api/v1/whoami", headers=proof)
        assert (status, json.loads(text)) == (200, {"role": role.value, "name": role.value})


async def test_each_role_may_do_what_it_is_for(cluster: SecuredCluster, training: Training) -> None:
    async with cluster.api_of(cluster.files.tokens[Role.READ]) as reader:
        assert len(await reader.nodes()) == 2
        for refused in (
            reader.cancel(training.name),
            reader.cancel("none"),
            reader.scale(training.name, 1),
            reader.rebalance(),
        ):
            with pytest.raises(AccessDenied, match="is for read"):
                await refused
    async with cluster.api_of(cluster.files.tokens[Role.SUBMIT]) as submitter:
        with pytest.raises(AccessDenied, match="needs the role admin"):
            await submitter.drain("n1", stay=True)
        with pytest.raises(AccessDenied, match="not one that submit has submitted"):
            await submitter.cancel(training.name)
        with pytest.raises(AccessDenied, match="not one that submit has submitted"):
            await submitter.scale(training.name, 1)
        cluster.role = Role.SUBMIT
        try:
            own = await cluster.submit(SCRIPTS / "train.py", "none", ".")
        finally:
            cluster.role = Role.ADMIN
        await submitter.cancel(own.name)
    await training.goes_on(2)


async def test_a_revoked_token_is_refused_at_once(cluster: SecuredCluster) -> None:
    token = create_token(cluster.files.token_file, "mallory", Role.ADMIN)
    async with cluster.api_of(token) as api:
        await api.nodes()
        revoke_token(cluster.files.token_file, "mallory")
        with pytest.raises(AccessDenied, match="revoked"):
            await api.nodes()


async def test_a_stream_needs_a_token_and_ends_when_it_is_revoked(cluster: SecuredCluster) -> None:
    async with cluster.api_of(None) as nobody:
        with pytest.raises(AccessDenied, match="a token is needed"):
            await anext(nobody.stream())
    token = create_token(cluster.files.token_file, "viewer", Role.READ)
    async with cluster.api_of(token) as viewer:
        stream = viewer.stream()
        assert (await anext(stream)).event == "status"
        revoke_token(cluster.files.token_file, "viewer")
        async with asyncio.timeout(WAIT_S):
            async for _ in stream:
                continue


async def test_a_jobs_curve_is_fetched_from_the_node_that_keeps_it(
    cluster: SecuredCluster, training: Training
) -> None:
    context = ssl.create_default_context(cafile=cluster.files.authority.ca)
    proof = {"Authorization": f"Bearer {cluster.files.tokens[Role.READ]}"}
    async with aiohttp.ClientSession(headers=proof) as session, asyncio.timeout(WAIT_S):
        for node in cluster.local.nodes.values():
            points: list[object] = []
            while not points:
                url = f"{node.http}/api/v1/jobs/{training.name}/series"
                async with session.get(url, ssl=context) as response:
                    points = (await response.json())["points"]


async def test_the_command_line_reads_its_token_from_a_file(
    cluster: SecuredCluster, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(cluster.files.tokens[Role.READ] + "\n")
    token.chmod(0o600)

    async def elasticps(*arguments: str, **environment: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "elasticps", "--api", cluster.url, *arguments),
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    ca = str(cluster.files.authority.ca)
    code, text = await elasticps("nodes", ELASTICPS_CA=ca, ELASTICPS_TOKEN_FILE=str(token))
    assert (code, "n2" in text) == (0, True), text
    code, text = await elasticps("nodes", ELASTICPS_CA=ca)
    assert (code, "a token is needed" in text) == (1, True), text
    code, text = await elasticps("--token-file", str(token), "nodes")
    assert (code, "--ca names the cluster's authority" in text) == (1, True), text


# -- strategies among workers


async def test_workers_fetch_from_each_other_over_tls(cluster: SecuredCluster) -> None:
    job = await cluster.train(strategy="gossip:topology=ring", max_workers=2)
    await job.is_trained_by("n1", "n2")
    await job.finish()
    assert (await job.ended()).state == "SUCCEEDED"


@pytest.mark.long
async def test_sums_that_would_cross_the_network_readable_are_refused(
    cluster: SecuredCluster,
) -> None:
    job = await cluster.train(strategy="all-reduce", max_workers=2)
    ended = await job.ended()
    assert ended.state == "FAILED"
    assert "gloo's sums cross the network readable" in ended.reason


# -- failure


async def test_certificates_are_renewed_and_a_killed_server_replaced_while_a_job_trains(
    cluster: SecuredCluster, training: Training, tmp_path: Path
) -> None:
    files = cluster.files.nodes["n1"]
    ca = cluster.files.authority
    for name in ("ca.pem", "ca-key.pem"):
        shutil.copy(ca.directory / name, tmp_path / name)
    fresh = issue(tmp_path, "n1", ["127.0.0.1"], days=30)
    for made, used in ((fresh.cert, files.cert), (fresh.key, files.key)):
        made.replace(used)
    kill(await cluster.shard_server_pid("n1"))
    await training.goes_on()
    await training.lies_on("n1", "n2")
    record = await cluster.record("n1")
    assert record is not None
    for address in (urlsplit(record.http).netloc, record.servers[0].tcp.removeprefix("tcp:")):
        host, _, port = address.rpartition(":")
        shown = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
        assert ssl.PEM_cert_to_DER_cert(shown) == ssl.PEM_cert_to_DER_cert(files.cert.read_text())


@pytest.mark.long
async def test_a_killed_daemon_is_noticed_by_its_refused_connection(
    cluster: SecuredCluster, training: Training
) -> None:
    """n3 and n4 are on one machine: to another one a loopback address says nothing."""
    for name in ("n3", "n4"):
        await cluster.add_node(name)
    await watched(cluster, "n3", by="n4")
    cluster.local.kill("n3")
    await cluster.until(lambda status: len(status.nodes) == 3, "n3 is gone")
    assert "node=n3" in cluster.log_of("n4")
    assert "is dead: its connection broke" in cluster.log_of("n4")
    await training.goes_on(5)
    await training.finish()


# -- secrets


async def test_secrets_are_nowhere_but_in_their_files(
    cluster: SecuredCluster,
    files: SecretFiles,
    script: Script,
    record_property: Callable[[str, object], None],
) -> None:
    """Argv and environment of every process, all logs, all of etcd, every answer of the API."""
    passes = cluster.directory / "passes"
    passes.mkdir()
    spying = script(
        """
        import sys, pathlib, torch, elasticps, time
        with elasticps.join() as run:
            model = torch.nn.Linear(4, 1)
            optimizer = run.optimizer(model, "sgd", lr=0.1)
            data = torch.utils.data.TensorDataset(torch.ones(40, 4), torch.ones(40, 1))
            token = run._agent.access.token
            (pathlib.Path(sys.argv[1]) / f"{run.node}").write_bytes(token)
            for x, y in run.data(data, batch_size=4, epochs=100_000):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                run.log(loss=1.0)
                if (pathlib.Path(sys.argv[1]) / "stop").exists():
                    break
                time.sleep(0.05)
        """
    )
    job = await cluster.submit(spying, passes, max_workers=2)
    await job.is_trained_by("n1", "n2")
    canaries = {what: word.encode() for what, word in files.canaries().items()}
    for path in passes.iterdir():
        for number, word in enumerate(spellings(path.read_bytes()[-40:])):
            canaries[f"the pass of a worker of {path.name}, {number}"] = word
    assert len(canaries) == 1 + len(Role) + 5 + 2 * 4

    places = processes(cluster) | await etcd_values(cluster)
    for path in ("status", "jobs", "nodes", "local", "load", f"jobs/{job.name}", "rebalance"):
        proof = {"Authorization": f"Bearer {files.tokens[Role.ADMIN]}"}
        status, text = await answer(cluster, "GET", f"/api/v1/{path}", headers=proof)
        assert status == 200
        places[f"the answer to {path}"] = text.encode()
    status, text = await answer(cluster, "GET", "/metrics", headers=proof)
    assert (status, f'job_name="{job.name}"' in text) == (200, True)
    places["the metrics"] = text.encode()
    (passes / "stop").touch()
    assert (await job.ended()).state == "SUCCEEDED"
    logs = [path for path in (cluster.directory / "cluster").rglob("*") if path.is_file()]
    assert sum(path.suffix == ".log" for path in logs) >= 6
    places |= {str(path): path.read_bytes() for path in logs}

    seen = [place for place, content in places.items() if job.name.encode() in content]
    for kind in ("environ of", "etcd's", "the answer to", "daemon.log"):  # it would be found
        assert any(kind in place for place in seen), kind
    found = [
        f"{what} is in {place}"
        for what, word in canaries.items()
        for place, content in places.items()
        if word in content
    ]
    record_property("secret_leaks", len(found))
    assert not found


def spellings(secret: bytes) -> Iterator[bytes]:
    """It as it is, and in base64 wherever in a longer text it begins."""
    yield secret
    for offset in range(3):
        yield base64.b64encode(secret[offset : offset + 36])


def processes(cluster: SecuredCluster) -> dict[str, bytes]:
    """Argv and environment of the cluster's processes: at least daemons, servers, workers."""
    mark = str(cluster.directory).encode()
    found: dict[str, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv, environ = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if mark in argv or mark in environ:
            found[f"argv of {argv!r}"], found[f"environ of {argv!r}"] = argv, environ
    assert len(found) >= 2 * 6
    return found


async def etcd_values(cluster: SecuredCluster) -> dict[str, bytes]:
    listing = await cluster.local.store.list("/")
    assert len(listing.items) > 5
    return {f"etcd's {item.key}": item.value for item in listing.items}
