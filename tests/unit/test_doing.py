"""A shard server's death within a stranger's optimizer is told with the optimizer's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elasticps.api.optimizer import TorchOptimizer
from elasticps.core.blocks import Model, Parameter, partition
from elasticps.core.ids import ServerId
from elasticps.core.records import ServerEnd, ServerRecord
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.shard_server import ShardServerChild
from elasticps.errors import PluginError
from elasticps.server.doing import Doing, was_doing
from elasticps.server.tensor_block import TensorBlock
from elasticps.store import StoreConfig
from elasticps.wire.address import Address

WHAT = "optimizer odd on parameter layer.weight, block 1"


class Looks(torch.optim.SGD):
    """Notes in each step what a dead process would be found at."""

    file: Path
    seen: list[str]
    error: BaseException | None = None

    def step(self, closure=None):
        self.seen.append(was_doing(self.file))
        if self.error is not None:
            raise self.error
        return super().step(closure)


def block_of(cls: type[torch.optim.Optimizer], doing: Doing) -> TensorBlock:
    parameter = Parameter(name="layer.weight", shape=(3,), dtype="float32")
    model = Model(
        parameters=(parameter,), optimizer="odd", options={"lr": 0.1}, groups=({"lr": 0.1},)
    )
    return TensorBlock(
        partition(model)[0], parameter, model, TorchOptimizer(cls), doing=doing.of_job("train-1")
    )


@pytest.mark.parametrize("error", [None, OverflowError("no such number"), SystemExit(3)])
def test_a_strangers_step_can_be_named_while_it_runs_and_not_after_it(
    tmp_path: Path, error: BaseException | None
) -> None:
    file = tmp_path / "doing"
    Looks.file, Looks.seen, Looks.error = file, [], error
    block = block_of(Looks, Doing(file))
    if error is None:
        block.step(torch.ones(3), {})
    else:
        with pytest.raises(PluginError) as caught:
            block.step(torch.ones(3), {})
        told = f"{type(error).__name__}: {error}"
        assert str(caught.value) == f"{WHAT}: step() failed: {told}"
    assert Looks.seen == [f"step() of {WHAT} of job train-1"]
    assert was_doing(file) == ""


def test_what_was_begun_is_there_when_the_process_is_dead(tmp_path: Path) -> None:
    file = tmp_path / "doing"
    program = (
        "import os, pathlib\n"
        "from elasticps.server.doing import Doing\n"
        f"doing = Doing(pathlib.Path({str(file)!r})).of_job('train-1')\n"
        "doing.begin(doing.sentence('step() of ' + 'x' * 600))\n"
        "os._exit(3)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=False)
    assert ran.returncode == 3
    assert was_doing(file) == f"step() of {'x' * 502}"


@pytest.mark.parametrize("within", ["", f"step() of {WHAT}"], ids=["nothing", "a step"])
def test_the_daemon_remembers_in_what_its_server_died(tmp_path: Path, within: str) -> None:
    config = DaemonConfig(etcd=StoreConfig(endpoints=("a:1",)), node="n1", runtime_dir=tmp_path)
    child = ShardServerChild(config, Address.unix(tmp_path / "control"), lambda: None)
    doing = Doing(tmp_path / "shard-server.doing")
    child.said_hello(ServerRecord(server=ServerId("n1/1"), tcp="", unix=""))
    doing.begin(doing.sentence(within))

    child.gone()

    assert child.end == (ServerEnd(server=ServerId("n1/1"), within=within) if within else None)
