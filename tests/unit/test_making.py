"""Options of strategies and codecs that cannot be are refused when a job is submitted."""

from __future__ import annotations

import pytest

from elasticps.core.chosen import Chosen
from elasticps.daemon import making
from elasticps.daemon.chosen import check_chosen
from elasticps.daemon.making import Making
from elasticps.errors import PluginError
from elasticps.server.makes import made
from elasticps.wire.messages import MakePlugins


class Server:
    """The shard server's end, in this process."""

    def __init__(self) -> None:
        self.asked: list[MakePlugins] = []
        self.making = Making(self.tell)

    def tell(self, asked: MakePlugins) -> bool:
        self.asked.append(asked)
        self.making.answered(made(asked))
        return True


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "text", "word"),
    [
        ("strategy", "local-sgd:h=abc", "h of 'abc'"),
        ("strategy", "local-sgd:h=-1", "h=-1"),
        ("strategy", "gossip:topology=no", "no topology 'no'"),
        ("strategy", "data-parallel:consistency=no", "consistency=no"),
        ("strategy", "a=all-reduce:no=1; *=data-parallel", "no option 'no'"),
        ("codec", "top-k:ratio=5", "ratio 5"),
        ("codec", "ef+top-k:ratio=nan", "ratio nan"),
        ("codec", "int8+top-k", "int8 keeps every number"),
        ("codec", "power-sgd:rank=0", "rank 0"),
    ],
)
async def test_option_that_cannot_be_is_refused_before_the_job_is(
    field: str, text: str, word: str
) -> None:
    with pytest.raises(PluginError, match=word) as caught:
        await Server().making.check(Chosen(**{field: text}))
    assert caught.value.field == field
    assert "Error" not in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "text"), [("placement", "load-aware:x=1"), ("data_policy", "static:x=1")]
)
def test_option_of_a_placement_or_data_policy_is_refused_before_the_job_is(
    field: str, text: str
) -> None:
    with pytest.raises(PluginError, match="has no option 'x'") as caught:
        check_chosen(Chosen(**{field: text}))
    assert caught.value.field == field


async def test_options_that_can_be_are_taken() -> None:
    server = Server()
    await server.making.check(Chosen(strategy="local-sgd:h=4", codec="ef+top-k:ratio=0.1+int8"))
    assert len(server.asked) == 1


async def test_nothing_is_asked_where_there_are_no_options() -> None:
    server = Server()
    await server.making.check(Chosen(strategy="all-reduce", codec="int8"))
    assert not server.asked


async def test_a_shard_server_that_is_away_or_silent_holds_no_job_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(making, "LIMIT_S", 0.01)
    for there in (False, True):
        await Making(lambda _, there=there: there).check(Chosen(codec="top-k:ratio=5"))
