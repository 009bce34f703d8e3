"""The page on probes against the code: modules, names, and which test checks what."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import llm_unlearn.eval
import llm_unlearn.eval.benchmarks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "probes.md").read_text("utf-8")
_CODE = re.compile(r"`([^`\n]+)`")


def _modules() -> dict[str, object]:
    found = {}
    for package, folder in ((llm_unlearn.eval, ""), (llm_unlearn.eval.benchmarks, "benchmarks/")):
        for module in pkgutil.iter_modules(package.__path__):
            name = f"{package.__name__}.{module.name}"
            found[f"{folder}{module.name}.py"] = importlib.import_module(name)
    return found


def test_modules_and_functions_that_the_page_names_exist() -> None:
    modules = _modules()
    files = {c for c in _CODE.findall(PAGE) if re.fullmatch(r"[\w/]+\.py", c)}
    files = {f.removeprefix("eval/") for f in files if not f.startswith("test_")}
    assert len(files) > 15
    assert files <= modules.keys()
    names = {c for c in _CODE.findall(PAGE) if re.fullmatch(r"[A-Za-z]\w*_\w+|TokenScores", c)}
    theirs = {"trim_offsets", "output_hidden_states", "rouge_score"}
    assert len(names - theirs) > 8
    for name in names - theirs:
        assert any(hasattr(module, name) for module in modules.values()), name


def test_each_probe_is_checked_where_the_page_says() -> None:
    """A row's test file imports its modules; every module of probes has a row."""
    section = PAGE.split("## Which probe is checked against what")[1].split("\n## ")[0]
    seen: set[str] = set()
    for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[2:]:
        probe, _, files = row.split(" | ")
        tests = [
            (ROOT / "tests" / "eval" / name).read_text("utf-8") for name in _CODE.findall(files)
        ]
        assert tests, row
        for module in (c for c in _CODE.findall(probe) if c.endswith(".py")):
            seen.add(module)
            stem = module.removesuffix(".py").rpartition("/")[2]
            if stem != "streams":  # reached through `residue`
                assert any(re.search(rf"import .*\b{stem}\b|\.{stem} import", t) for t in tests), (
                    row
                )
    tools = {"bench", "benchmarks", "cards", "forms", "page"}
    needed = {m for m in _modules() if m.removesuffix(".py") not in tools}
    assert needed - seen == {"benchmarks/rows.py"}
