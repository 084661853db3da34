"""The conformance kit under pytest: ``-p elasticps.testing --elasticps-plugin NAME``.

Without paths on the command line the kit's cases alone are collected, wherever it is called.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from elasticps.errors import ElasticError
from elasticps.testing.kit import Subject, cases_of, subject_of

CASES = Path(__file__).with_name("test_contract.py")
LINES = pytest.StashKey[list[str]]()
SUBJECTS = pytest.StashKey[list[Subject]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("elasticps", "conformance of elasticps plugins")
    group.addoption(
        "--elasticps-plugin",
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,...]",
        help="check this installed plugin against its contract; may be repeated",
    )
    group.addoption(
        "--elasticps-group",
        metavar="GROUP",
        help="the plugins' group, such as optimizers, where several have one of this name",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []
    texts, group = config.getoption("--elasticps-plugin"), config.getoption("--elasticps-group")
    if not texts:
        return
    try:
        config.stash[SUBJECTS] = [subject_of(text, group) for text in texts]
    except ElasticError as error:
        raise pytest.UsageError(str(error)) from error
    import torch

    torch.set_num_threads(1)  # as shard servers do; several would wait for each other's turns
    if config.args_source is not config.ArgsSource.ARGS:
        config.args.clear()
    config.args.append(str(CASES))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.path != CASES:
        return
    rows = [
        pytest.param(subject, case, id=f"{subject.group.kind} {subject.text}-{case.name}")
        for subject in metafunc.config.stash.get(SUBJECTS, [])
        for case in cases_of(subject.group)
    ]
    metafunc.parametrize(("subject", "case"), rows)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are shown at the end of the run."""
    return request.config.stash[LINES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash[LINES]
    if lines:
        terminalreporter.section("elasticps")
        for line in lines:
            terminalreporter.write_line(line)
