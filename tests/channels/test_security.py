"""The tests that docs/security.md names exist: a claim whose proof has been renamed or lost is no longer one."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "security.md"
NAMED = re.compile(r"`((?:tests/secsplit/)?test_\w+)?(?:::(test_\w+?)(\.\.\.)?)?`")


def named() -> list[tuple[str, str, bool]]:
    """(file, test or nothing, whether it is only the test's beginning), in the order of the document."""
    found, file = [], ""
    for match in NAMED.finditer(DOCUMENT.read_text(encoding="utf-8")):
        file = match[1] or file  # "`::test_x`" is in the file named last
        found.append((file, match[2] or "", bool(match[3])))
    return found


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_document_names_many_tests() -> None:
    assert len([test for _, test, _ in named() if test]) > 30


@pytest.mark.parametrize(("file", "test", "beginning"), sorted(set(named())))
def test_a_test_that_is_named_exists(file: str, test: str, beginning: bool) -> None:
    path = HERE.parents[1] / f"{file}.py" if "/" in file else HERE / f"{file}.py"
    assert path.exists()
    if test:
        names = functions_of(path)
        assert any(name.startswith(test) for name in names) if beginning else test in names
