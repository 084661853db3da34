"""Plugins are found by metadata alone, and whatever is wrong with one names it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import GROUPS, OPTIMIZERS, STRATEGIES, Plugin, discover, load
from elasticps.api.refused import REFUSED
from elasticps.api.strategy import Strategy
from elasticps.errors import PluginError
from elasticps.optimizers import builtin
from elasticps.strategies.data_parallel import DataParallel
from tests.support.distributions import Install, install

__all__ = ["install"]

GOOD = """
    import torch
    from elasticps import TorchOptimizer

    plugin = TorchOptimizer(torch.optim.NAdam)
"""


def named(group: str, name: str) -> list[Plugin]:
    return [plugin for plugin in discover(group) if plugin.name == name]


def refused(name: str, group: str = OPTIMIZERS) -> PluginError:
    """The error that selecting the plugin gives."""
    contract: type[Optimizer | Strategy] = Optimizer if group == OPTIMIZERS else Strategy
    with pytest.raises(PluginError) as caught:
        load(group, name, contract)
    return caught.value


# -- the built-in ones --------------------------------------------------------------------------


def test_builtin_optimizers_are_found_and_loaded_like_any_plugin() -> None:
    for name in ("adafactor", "adagrad", "adam", "adamw", "lamb", "rmsprop", "sgd"):
        (plugin,) = named(OPTIMIZERS, name)
        assert plugin.distribution == "elasticps"
        assert load(OPTIMIZERS, name, Optimizer) is getattr(builtin, name)  # type: ignore[type-abstract]


def test_every_optimizer_of_torch_is_a_plugin_or_refused_with_the_reason() -> None:
    listed = {plugin.name for plugin in discover(OPTIMIZERS)}
    for cls in vars(torch.optim).values():
        if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
            continue
        name = cls.__name__.lower()
        if cls is torch.optim.Optimizer:
            continue
        if (OPTIMIZERS, name) in REFUSED:
            assert name not in listed
            assert REFUSED[OPTIMIZERS, name] in str(refused(name))
        else:
            plugin = load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]
            assert repr(plugin) == f"TorchOptimizer({cls.__name__})"


def test_a_plugin_that_is_a_class_is_made_anew_for_each_selection() -> None:
    first, second = (load(STRATEGIES, "data-parallel", Strategy) for _ in range(2))  # type: ignore[type-abstract]
    assert isinstance(first, DataParallel)
    assert first is not second


def test_discovery_imports_no_plugin_and_not_torch() -> None:
    script = (
        "import sys\n"
        "from elasticps.api.plugins import GROUPS, discover\n"
        "assert all(discover(group) for group in GROUPS)\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'elasticps.optimizers.builtin' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# -- third-party ones ---------------------------------------------------------------------------


def test_an_installed_plugin_is_listed_and_makes_its_optimizer(install: Install) -> None:
    install("acme-nadam", "acme_nadam", GOOD, {OPTIMIZERS: {"acme": "acme_nadam:plugin"}})
    (plugin,) = named(OPTIMIZERS, "acme")
    assert plugin == Plugin(
        group=OPTIMIZERS,
        name="acme",
        distribution="acme-nadam",
        version="1.0",
        target="acme_nadam:plugin",
    )
    made = load(OPTIMIZERS, "acme", Optimizer)  # type: ignore[type-abstract]
    local = made.create([{"params": [torch.zeros(3)]}], {"lr": 0.5})
    assert isinstance(local, torch.optim.NAdam)
    assert local.param_groups[0]["lr"] == 0.5


def test_plugins_are_listed_in_name_order(install: Install) -> None:
    entries = dict.fromkeys(("zeta", "alpha"), "acme:plugin")
    install("acme", "acme", GOOD, {OPTIMIZERS: entries})
    names = [plugin.name for plugin in discover(OPTIMIZERS)]
    assert names == sorted(names)
    assert {"alpha", "zeta"} <= set(names)


def test_a_plugin_of_one_group_is_not_in_another(install: Install) -> None:
    install("acme", "acme", GOOD, {STRATEGIES: {"acme": "acme:plugin"}})
    assert [bool(named(group, "acme")) for group in GROUPS] == [
        group == STRATEGIES for group in GROUPS
    ]
    assert refused("acme").field == "name"


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("raise RuntimeError('no such GPU')", "acme:plugin", "RuntimeError: no such GPU"),
        ("import not_installed", "acme:plugin", "No module named 'not_installed'"),
        ("plugin = (", "acme:plugin", "SyntaxError"),
        ("other = 1", "acme:plugin", "has no attribute 'plugin'"),
        (GOOD, "acme_gone:plugin", "No module named 'acme_gone'"),
        (GOOD, "not a target", "AttributeError"),
    ],
    ids=["raises", "lacks a module", "syntax", "lacks the object", "lacks itself", "no target"],
)
def test_a_broken_plugin_is_listed_and_its_selection_says_what_is_wrong(
    install: Install, source: str, target: str, reason: str
) -> None:
    install("acme-tools", "acme", source, {OPTIMIZERS: {"broken": target}}, version="2.3")
    assert [plugin.target for plugin in named(OPTIMIZERS, "broken")] == [target]
    error = refused("broken")
    assert error.where == f"plugin broken of acme-tools 2.3 ({target})"
    assert reason in error.what
    assert isinstance(error.__cause__, Exception)


def test_a_broken_plugin_does_not_disturb_the_others(install: Install) -> None:
    install("acme-bad", "acme_bad", "raise OSError", {OPTIMIZERS: {"bad": "acme_bad:plugin"}})
    install("acme-good", "acme_good", GOOD, {OPTIMIZERS: {"good": "acme_good:plugin"}})
    assert load(OPTIMIZERS, "good", Optimizer)  # type: ignore[type-abstract]
    assert load(OPTIMIZERS, "sgd", Optimizer) is builtin.sgd  # type: ignore[type-abstract]


def test_two_plugins_of_one_name_are_refused_and_both_named(install: Install) -> None:
    install("acme-one", "acme_one", GOOD, {OPTIMIZERS: {"twin": "acme_one:plugin"}})
    install("acme-two", "acme_two", GOOD, {OPTIMIZERS: {"twin": "acme_two:plugin"}})
    assert len(named(OPTIMIZERS, "twin")) == 2
    error = refused("twin")
    assert "twin of acme-one 1.0 (acme_one:plugin)" in error.what
    assert "twin of acme-two 1.0 (acme_two:plugin)" in error.what
    assert "acme_one" not in sys.modules


def test_a_builtin_name_cannot_be_taken_over(install: Install) -> None:
    install("acme", "acme", GOOD, {OPTIMIZERS: {"adamw": "acme:plugin"}})
    error = refused("adamw")
    assert "elasticps " in error.what
    assert "acme 1.0" in error.what


@pytest.mark.parametrize(
    ("group", "asked", "near"),
    [(OPTIMIZERS, "adanw", "adamw"), (STRATEGIES, "data_parallel", "data-parallel")],
)
def test_an_unknown_name_suggests_the_near_one(group: str, asked: str, near: str) -> None:
    error = refused(asked, group)
    assert error.hint == f"did you mean {near}?"
    assert error.field == "name"
    assert near in (error.limit or "").split(", ")


def test_an_unknown_name_that_is_near_to_none_lists_them_all() -> None:
    error = refused("zzzzzz")
    assert "installed on every node" in (error.hint or "")
    assert set((error.limit or "").split(", ")) == {item.name for item in discover(OPTIMIZERS)}


VERSION_2 = """
    from elasticps import Optimizer

    class Plugin(Optimizer):
        api_version = 2

        def create(self, groups, options):
            raise NotImplementedError
"""


@pytest.mark.parametrize("target", ["acme:Plugin", "acme:made"], ids=["class", "instance"])
def test_another_version_of_the_contract_is_refused(install: Install, target: str) -> None:
    source = VERSION_2 + "\n    made = Plugin()\n"
    install("acme", "acme", source, {OPTIMIZERS: {"later": target}})
    error = refused("later")
    assert error.field == "api_version"
    assert error.where == f"plugin later of acme 1.0 ({target})"
    assert "version 2" in error.what
    assert error.limit == "this elasticps knows 1"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("plugin = 3", "int"),
        ("import torch\nplugin = torch.nn.Identity", "Identity"),
        ("from elasticps.strategies.data_parallel import DataParallel as plugin", "DataParallel"),
    ],
    ids=["a number", "some class", "another contract"],
)
def test_what_is_not_the_contract_is_refused(install: Install, source: str, kind: str) -> None:
    install("acme", "acme", source, {OPTIMIZERS: {"odd": "acme:plugin"}})
    error = refused("odd")
    assert error.what == f"is a {kind}, not a Optimizer"
    assert error.where == "plugin odd of acme 1.0 (acme:plugin)"


def test_a_class_that_lacks_a_method_of_the_contract_is_refused(install: Install) -> None:
    source = "from elasticps import Optimizer\nclass Plugin(Optimizer): pass\n"
    install("acme", "acme", source, {OPTIMIZERS: {"odd": "acme:Plugin"}})
    error = refused("odd")
    assert "abstract" in error.what
    assert error.where == "plugin odd of acme 1.0 (acme:Plugin)"
