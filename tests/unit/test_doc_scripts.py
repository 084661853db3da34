"""The scripts of the docs and examples work in any worker, also in one that gets no batch."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Scope = ast.Module | ast.FunctionDef


def scripts() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "examples").rglob("*.py")):
        yield str(path.relative_to(ROOT)), path.read_text()
    for page in PAGES:
        text = page.read_text()
        found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        found += [here for _, here in re.findall(r"<<'(\w+)'\n(.*?)\n\1\n", text, re.DOTALL)]
        for number, script in enumerate(found):
            if "run.data(" in script:
                yield f"{page.relative_to(ROOT)}[{number}]", textwrap.dedent(script)


def own_nodes(scope: Scope) -> Iterator[ast.AST]:
    """Without those of the functions in it."""
    waiting: list[ast.AST] = list(scope.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def set_by_the_loop_alone(script: str) -> set[str]:
    """Names that are read behind a loop over ``run.data`` and may never have been set."""
    tree = ast.parse(script)
    scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]
    return {name for scope in scopes for name in _unset(list(own_nodes(scope)))}


def _unset(nodes: list[ast.AST]) -> Iterator[str]:
    names = [node for node in nodes if isinstance(node, ast.Name)]
    datas = {
        ast.unparse(node.targets[0])
        for node in nodes
        if isinstance(node, ast.Assign) and "run.data(" in ast.unparse(node.value)
    }
    for loop in (node for node in nodes if isinstance(node, ast.For)):
        over = ast.unparse(loop.iter)
        if "run.data(" not in over and not any(re.search(rf"\b{data}\b", over) for data in datas):
            continue
        inside = {name for name in ast.walk(loop) if isinstance(name, ast.Name)}
        set_inside = {name.id for name in inside if isinstance(name.ctx, ast.Store)}
        for name in names:
            if isinstance(name.ctx, ast.Load) and name.id in set_inside:
                is_behind = name.lineno > (loop.end_lineno or 0)
                earlier = (
                    other.id == name.id
                    and isinstance(other.ctx, ast.Store)
                    and other not in inside
                    and other.lineno < name.lineno
                    for other in names
                )
                if is_behind and not any(earlier):
                    yield name.id


SCRIPTS = list(scripts())


@pytest.mark.parametrize(("where", "script"), SCRIPTS, ids=[where for where, _ in SCRIPTS])
def test_what_follows_the_loop_needs_no_batch(where: str, script: str) -> None:
    assert set_by_the_loop_alone(script) == set(), where


@pytest.mark.parametrize("over", ["run.data(things)", "enumerate(data)"])
def test_a_loss_that_only_the_loop_sets_is_found(over: str) -> None:
    script = f"""
    def main(run):
        data = run.data(things)
        for x in {over}:
            loss = model(x)
            again = model(x)
        again = 0
        print(loss, again)
    """
    assert set_by_the_loop_alone(textwrap.dedent(script)) == {"loss"}
