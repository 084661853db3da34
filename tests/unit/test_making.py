"""Options of strategies and codecs that cannot be are refused when a job is submitted."""

from __future__ import annotations

import pytest

from elasticps.api.plugins import STRATEGIES
from elasticps.core.chosen import Chosen
from elasticps.daemon import making
from elasticps.daemon.chosen import check_chosen
from elasticps.daemon.making import Making
from elasticps.daemon.plugin_check import Findings, Trial, rehearse, strategy_trial
from elasticps.errors import PluginError
from elasticps.server.makes import made
from elasticps.wire.control_messages import MakePlugins
from tests.support.distributions import Install, install

__all__ = ["install"]


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


CHOOSY = """
    class Choosy:
        api_version = 1

        def __init__(self, h: int = 1) -> None:
            if h < 1:
                raise ValueError(f"h={h}: at least 1")
"""


@pytest.mark.bad_input
async def test_a_strangers_plugin_is_made_elsewhere_once_and_its_refusal_is_the_jobs(
    install: Install,
) -> None:
    install("acme", "acme_choosy", CHOOSY, {STRATEGIES: {"choosy": "acme_choosy:Choosy"}})
    tried: list[str] = []

    async def rehearsed(trial: Trial) -> Findings:
        tried.append(trial.choice)
        reason = "plugin choosy of acme 1.0: h=0: at least 1" if "h=0" in trial.choice else ""
        return Findings(passed=(), reason=reason)

    making = Making(lambda _: pytest.fail("no stranger's code runs in the shard server"), rehearsed)
    with pytest.raises(PluginError, match="h=0: at least 1") as caught:
        await making.check(Chosen(strategy="choosy:h=0"))
    assert caught.value.field == "strategy"
    for _ in range(2):
        await making.check(Chosen(strategy="choosy:h=4"))
        await making.check(Chosen(strategy="choosy"))  # whoever gives no options asks for nothing
    assert tried == ["choosy:h=0", "choosy:h=4"]


@pytest.mark.bad_input
async def test_the_process_that_makes_a_strangers_strategy_says_what_is_wrong(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {STRATEGIES: {"choosy": "acme_choosy:Choosy"}}
    site = install("acme", "acme_choosy", CHOOSY, entries)
    monkeypatch.setenv("PYTHONPATH", str(site))
    found = await rehearse(strategy_trial("choosy:h=0"))
    assert found.reason.endswith("h=0: at least 1")
    assert "choosy of acme 1.0" in found.reason
