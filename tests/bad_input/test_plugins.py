"""Bad input by plugins: named with their distribution, and only who chose one is hurt."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from elasticps.api.codec import Codec
from elasticps.api.job_codec import JobCodec
from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import CODECS, OPTIMIZERS, PLACEMENTS, STRATEGIES, discover, load
from elasticps.api.strategy import Strategy
from elasticps.cli.main import main
from elasticps.errors import CodecError, PluginError
from tests.support.distributions import Install, install

__all__ = ["install"]

pytestmark = pytest.mark.bad_input

LIMIT_S = "3"
OPTIMIZER = "import torch\nfrom elasticps import TorchOptimizer\n"
NO_STEP = "from elasticps import Strategy\nclass plugin(Strategy):\n    pass\n"
NEWER = (
    "from elasticps import Strategy\n"
    "class plugin(Strategy):\n"
    "    api_version = 99\n"
    "    async def step(self, step): ...\n"
)
CHOOSY = NEWER.replace("99", "1") + "    def __init__(self, h): raise ValueError('h is wrong')\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A module whose ``plugin`` is chosen, and what it is told by."""

    source: str
    says: str
    group: str = STRATEGIES
    options: tuple[tuple[str, Any], ...] = ()
    field: str | None = None


LOADING = {
    "a newer api_version": Row(source=NEWER, field="api_version", says="version 99"),
    "no api_version": Row(
        source=NEWER.replace("99", "None"), field="api_version", says="version None"
    ),
    "a missing attribute": Row(source="other = 1", says="AttributeError"),
    "a missing method": Row(source=NO_STEP, says="step"),
    "an import that fails": Row(source="import a_module_that_is_not_there", says="ModuleNotFound"),
    "an import that raises": Row(source="raise OSError('no such GPU')", says="no such GPU"),
    "an import that exits": Row(source="raise SystemExit(3)", says="SystemExit: 3"),
    "a syntax error": Row(source="def plugin(:", says="SyntaxError"),
    "something else": Row(source="plugin = 42", says="is a int, not a Strategy"),
    "a making that raises": Row(source=CHOOSY, options=(("h", 1),), says="h is wrong"),
    "an option that it lacks": Row(
        source=CHOOSY, options=(("q", 1),), field="q", says="has no option 'q'"
    ),
    "an optimizer in a strategy's place": Row(
        source=OPTIMIZER + "plugin = TorchOptimizer(torch.optim.SGD)", says="not a Strategy"
    ),
}


@pytest.mark.parametrize("name", LOADING)
def test_a_plugin_that_cannot_be_loaded_is_named_with_the_reason(
    name: str, install: Install
) -> None:
    row = LOADING[name]
    install("acme-bad", "acme_bad", row.source, {row.group: {"bad": "acme_bad:plugin"}})
    with pytest.raises(PluginError) as caught:
        load(row.group, "bad", Strategy, dict(row.options))  # type: ignore[type-abstract]
    error = caught.value
    assert row.says in error.what
    assert error.field == row.field
    assert error.where == "plugin bad of acme-bad 1.0 (acme_bad:plugin)"
    assert load(STRATEGIES, "data-parallel", Strategy)  # type: ignore[type-abstract]


@pytest.mark.parametrize("other", ["elasticps", "acme-two"])
def test_of_two_of_one_name_neither_is_taken(other: str, install: Install) -> None:
    source = OPTIMIZER + "plugin = TorchOptimizer(torch.optim.SGD)"
    name = "sgd" if other == "elasticps" else "same"
    install("acme-one", "acme_one", source, {OPTIMIZERS: {name: "acme_one:plugin"}})
    if other != "elasticps":
        install("acme-two", "acme_two", source, {OPTIMIZERS: {name: "acme_two:plugin"}})
    with pytest.raises(PluginError) as caught:
        load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]
    assert caught.value.field == "name"
    assert "acme-one 1.0" in caught.value.what
    assert f"of {other} " in caught.value.what
    assert "acme_one" not in sys.modules
    assert {"adam", "adamw"} <= {plugin.name for plugin in discover(OPTIMIZERS)}
    assert load(OPTIMIZERS, "adam", Optimizer)  # type: ignore[type-abstract]


def test_a_broken_one_is_listed_as_broken_and_hides_no_other(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme-bad", "acme_bad", "raise OSError", {OPTIMIZERS: {"bad": "acme_bad:plugin"}})
    assert main(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["plugins"]}
    assert rows.keys() >= {"bad", "adamw"}
    assert "acme_bad" not in sys.modules


CHOICES = {
    "a name that nobody has": (["--strategy", "data-paralel"], "did you mean data-parallel?"),
    "an option without a value": (["--strategy", "local-sgd:h"], "field strategy"),
    "a codec that nobody has": (["--codec", "int9"], "did you mean int8?"),
    "a placement that nobody has": (["--placement", "balancd"], "did you mean balanced?"),
    "a data policy that nobody has": (["--data-policy", "dynamc"], "did you mean dynamic?"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_cannot_be_starts_nothing(
    name: str,
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args, says = CHOICES[name]
    script = tmp_path / "train.py"
    script.write_text("")
    assert main(["run", *args, str(script)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert "Traceback" not in err


# -- what they do when they are used --------------------------------------------------------------

STEP = (
    OPTIMIZER
    + "class Odd(torch.optim.SGD):\n"
    + "    def step(self, closure=None):\n"
    + "        for group in self.param_groups:\n"
    + "            for p in group['params']:\n"
    + "                {}\n"
    + "plugin = TorchOptimizer(Odd)\n"
)
CODEC = (
    "import time\n"
    "import torch\n"
    "from elasticps import Codec\n"
    "class plugin(Codec):\n"
    "    def max_nbytes(self, numel): return 4 * numel\n"
    "    def encode(self, gradient, seed): return gradient.numpy().tobytes()\n"
    "    def decode(self, payload, numel):\n"
    "        return {}\n"
)
WHOLE = "torch.frombuffer(bytearray(payload), dtype=torch.float32)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """A plugin that ``elasticps plugins check`` tries in a process of its own."""

    group: str
    source: str
    says: str


USED = {
    "an optimizer that gives another dtype": Used(
        group=OPTIMIZERS, source=STEP.format("p.data = p.data.double()"), says="dtype"
    ),
    "an optimizer that gives another shape": Used(
        group=OPTIMIZERS, source=STEP.format("p.data = p.data.reshape(-1)[:1]"), says="shape"
    ),
    "an optimizer that hangs": Used(
        group=OPTIMIZERS,
        source=STEP.format("import time; time.sleep(99)"),
        says="did not end within 3 s",
    ),
    "a codec that gives another dtype": Used(
        group=CODECS, source=CODEC.format(WHOLE + ".double()"), says="flat float32"
    ),
    "a placement that hangs at import": Used(
        group=PLACEMENTS, source="while True: pass", says="did not end within 3 s"
    ),
}


@pytest.mark.parametrize("name", USED)
def test_a_plugin_that_breaks_its_contract_is_found_out_apart(
    name: str,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = USED[name]
    site = install("acme-odd", "acme_odd", row.source, {row.group: {"odd": "acme_odd:plugin"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert main(["plugins", "check", "odd", "--timeout", LIMIT_S, "--json"]) == 1
    out, err = capsys.readouterr()
    reason = json.loads(out)["reason"]
    assert reason.startswith("plugin odd of acme-odd 1.0 (acme_odd:plugin)")
    assert row.says in reason
    assert "Traceback" not in err
    assert "acme_odd" not in sys.modules


class Odd(Codec):
    """Decodes to whatever it is told to."""

    def __init__(self, decoded: Callable[[int], object]) -> None:
        self._decoded = decoded

    def max_nbytes(self, numel: int) -> int:
        return 4 * numel

    def encode(self, gradient: torch.Tensor, seed: int) -> bytes:
        return b"x"

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        return self._decoded(numel)  # type: ignore[return-value]


DECODED: dict[str, Callable[[int], object]] = {
    "another dtype": lambda numel: torch.zeros(numel, dtype=torch.float64),
    "another shape": lambda numel: torch.zeros(numel, 1),
    "too few": lambda numel: torch.zeros(numel - 1),
    "no tensor": lambda numel: [0.0] * numel,
    "nothing": lambda numel: None,
    "strided": lambda numel: torch.zeros(2 * numel)[::2],
    "an error": lambda numel: 1 // 0,
}


@pytest.mark.parametrize("name", DECODED)
def test_a_codec_that_decodes_no_gradient_loses_that_push_alone(name: str) -> None:
    codec = JobCodec("odd", Odd(DECODED[name]))
    with pytest.raises(CodecError) as caught:
        codec.decode(memoryview(b"x"), 8)
    assert caught.value.field == "payload"
    assert "codec odd" in caught.value.what
