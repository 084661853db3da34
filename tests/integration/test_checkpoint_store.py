"""A job whose checkpoints are in an object store: one that speaks S3, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

import elasticps
from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.integrity import check_whole
from elasticps.checkpoint.listing import list_checkpoints
from elasticps.checkpoint.remote import RemoteDisk
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import place_of
from elasticps.daemon.reachable import check_reachable
from elasticps.errors import UsageError
from tests.support.checkpoint_rig import CheckpointRig, Training
from tests.support.scripts import as_worker, assert_equal


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"checkpoints-{port}"  # the server's buckets outlive it in this process
    fs.mkdir(name)
    yield f"s3://{name}/jobs/one"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


async def test_a_job_resumes_from_an_object_store_as_if_never_stopped(bucket: str) -> None:
    wishes = {"checkpoint_dir": bucket, "checkpoint_every": 3, "checkpoint_keep": 2}
    async with CheckpointRig() as rig:
        straight = await as_worker(rig, Training(name="adam", stop_at=12))
    async with CheckpointRig(**wishes) as rig:
        await as_worker(rig, Training(name="adam", stop_at=10))
    root = place_of(bucket)
    assert [number for number, _ in complete(root)] == [9, 6]
    assert all(not row.problem for row in list_checkpoints(root, verify=True))
    assert {path.name for path in STORAGE.entries(root)} == {
        *("owner.json", "round-00000006", "round-00000009")
    }
    async with CheckpointRig(resume=bucket, **wishes) as rig:
        resumed = await as_worker(rig, Training(name="adam", stop_at=12))
    assert resumed.began_at == 9
    assert_equal(resumed.model, straight.model)


async def test_what_did_not_train_is_copied_by_the_store(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked: list[str] = []
    real = RemoteDisk.link

    def link(self: RemoteDisk, source: Path, target: Path) -> None:
        real(self, source, target)
        linked.append(str(target))

    monkeypatch.setattr(RemoteDisk, "link", link)

    def script(run: elasticps.Run) -> None:
        model = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
        optimizer = run.optimizer(model, "adam")
        while run.round < 4:
            model[0](torch.ones(3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    async with CheckpointRig(checkpoint_dir=bucket, checkpoint_every=2) as rig:
        await as_worker(rig, script)
    newest = place_of(bucket) / "round-00000004"
    still = [row.file for row in check_whole(newest).blocks if row.parameter.startswith("1.")]
    assert sorted(linked) == sorted(str(newest / file.name) for file in still)
    assert linked


async def test_a_bucket_is_looked_at_before_a_job_is_taken(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(**places: str) -> str:
        with pytest.raises(UsageError) as caught:
            await check_reachable(places, limit_s=30)
        assert [caught.value.field] == list(places)
        return caught.value.what

    await check_reachable({"checkpoint_dir": bucket}, limit_s=30)
    assert "no complete checkpoint here" in await refused(resume=bucket)
    missing = "s3://there-is-no-such-bucket/jobs"
    assert await refused(checkpoint_dir=missing) == f"{missing}: there is no such bucket"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    told = await refused(checkpoint_dir=bucket)
    assert "could not connect to the endpoint" in told.lower()


async def test_a_store_that_does_not_answer_is_not_waited_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UsageError, match=r"no answer within 0\.5 s"):
            await check_reachable({"checkpoint_dir": bucket}, limit_s=0.5)
