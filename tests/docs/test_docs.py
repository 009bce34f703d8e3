"""The documentation against the code: links, code, commands, cited tests and the file tree.

How a page (README.md, CONTRIBUTING.md, CHANGELOG.md, docs/*.md) is run, from top to bottom, in one
folder (see `conftest`) and with one set of Python names:

- a fenced `python` block is executed;
- in a fenced `sh` block each line is an `llm-unlearn` command and is carried out (a takedown that
  would ask is told yes), or `make` with a target that exists, which is not. A line that is meant to
  fail ends in `# exit N`. In a `console` block those are the lines that begin with `$ `, and the
  rest is what they print, which is not compared;
- `<!-- test: setup -->` begins anew: another folder, no names;
- `<!-- test: CODE -->` is Python that is executed and not shown;
- `<!-- not run: REASON -->` right before a block leaves it out. Its commands must parse all the same.

A file tree is a fenced block after `<!-- tree -->`: two blanks of indentation a level, folders end in
`/`, names are followed by what they are. It names every file; a folder without lines of its own
stands for all of it. After `<!-- tree: outline -->` it may leave files out.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"```(\w*)\n(.*?)^ *```\s*$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!-- (test|not run|tree)(?:: ?(.*?))? ?-->", re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_CITED = re.compile(r"^(tests/[\w/]+\.py)::(\w+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block or a hidden comment of a page, with the number of its first line of content."""

    kind: str  # the fence's language, or "test"
    body: str
    line: int
    mark: str = ""  # what the comment right before it says: "not run", "tree" or "outline"


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _blocks(page: Path) -> list[Block]:
    text = _read(page)
    found: list[tuple[int, int, Block]] = []
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start(2)) + 1
        found.append((fence.start(), fence.end(), Block(fence[1], fence[2], line)))
    fences = [(start, end) for start, end, _ in found]
    marks: dict[int, str] = {}
    for comment in _COMMENT.finditer(text):
        if any(start < comment.start() < end for start, end in fences):
            continue
        if comment[1] == "test":
            line = text.count("\n", 0, comment.start(2)) + 1
            found.append((comment.start(), comment.end(), Block("test", comment[2], line)))
            continue
        rest = text[comment.end() :]
        following = comment.end() + len(rest) - len(rest.lstrip())
        assert any(start == following for start, _ in fences), (
            f"{page}: {comment[0]} marks no block"
        )
        assert comment[1] == "tree" or comment[2], f"{page}: {comment[0]} gives no reason"
        marks[following] = "outline" if comment[2] == "outline" else comment[1]
    return [
        Block(block.kind, block.body, block.line, marks.get(start, ""))
        for start, _, block in sorted(found, key=lambda item: item[0])
    ]


def _commands(block: Block) -> Iterator[tuple[str, int]]:
    """The commands of a shell block, continuation lines joined, with their line numbers."""
    joined, first = "", block.line
    for number, raw in enumerate(block.body.splitlines(), start=block.line):
        line = raw.strip()
        if block.kind == "console" and not joined:
            if not line.startswith("$ "):
                continue
            line = line[2:]
        if not joined:
            first = number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if joined and not joined.startswith("#"):
            yield joined, first
        joined = ""
    assert not joined, f"line {first} goes on without an end"


# --- links and citations


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"[`*]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def _prose(page: Path) -> str:
    return _FENCE.sub("", _read(page))


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in _LINK.finditer(_prose(page)):
        target = link[1] or link[2]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name}: {target}"
        assert there.is_relative_to(ROOT), f"{name}: {target} leads out of the repository"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", _prose(there), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_files_and_tests_that_are_named_exist(name: str) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for code in _INLINE.findall(_prose(ROOT / name)):
        cited = _CITED.match(code)
        if cited:
            tree = ast.parse((ROOT / cited[1]).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert cited[2] in there, f"{name}: {code}"
        elif re.fullmatch(r"[\w.]+(/[\w.]+)+/?", code) and code.split("/")[0] in folders:
            assert (ROOT / code).exists(), f"{name}: {code}"


# --- code


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_the_page_runs(name: str, fresh_folder: Callable[[], None]) -> None:
    blocks = [block for block in _blocks(ROOT / name) if not block.mark]
    names: dict[str, Any] = {}
    if any(block.kind in ("python", "sh", "console") for block in blocks):
        fresh_folder()
    for block in blocks:
        if block.kind == "test" and block.body.strip() == "setup":
            fresh_folder()
            names = {}
        elif block.kind in ("python", "test"):
            # the traceback of a failure shows the line of the page
            source = "\n" * (block.line - 1) + block.body
            exec(compile(source, name, "exec"), names)
        elif block.kind in ("sh", "console"):
            for command, line in _commands(block):
                _carry_out(command, f"{name} line {line}")


def _carry_out(command: str, where: str) -> None:
    from llm_unlearn.cli import main

    expected = re.search(r"# exit (\d+)$", command)
    program, *arguments = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), f"{where}: {command}"
        return
    assert program == "llm-unlearn", f"{where}: {command!r} cannot be run; mark its block"
    one_step = arguments[0] == "takedown" and Path(arguments[1]).is_dir()
    if one_step and not {"--yes", "-y", "--dry-run", "-n"} & set(arguments):
        arguments.append("--yes")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(arguments)
    assert code == int(expected[1] if expected else 0), f"{where}: {command}\n{out.getvalue()}"


# --- the command line


def _group() -> tuple[Any, Any]:
    import typer

    from llm_unlearn.cli.app import _app

    group: Any = typer.main.get_command(_app())
    return group, group.make_context("llm-unlearn", ["status", "ws"])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_parses(name: str) -> None:
    group, context = _group()
    page = ROOT / name
    shell = [b for b in _blocks(page) if b.kind in ("sh", "console")]
    lines = [pair for block in shell for pair in _commands(block)]
    indented = re.finditer(r"^ {4}(llm-unlearn .*)$", _prose(page), re.MULTILINE)
    lines += [(line[1], 0) for line in indented]
    for command, line in lines:
        if not command.startswith("llm-unlearn "):
            continue
        _, which, *arguments = shlex.split(command, comments=True)
        if which in ("--version", "--help"):
            continue
        known = group.get_command(context, which)
        assert known is not None, f"{name} line {line}: {command}"
        if "--help" not in arguments:
            known.make_context(which, arguments, parent=context)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_named_in_the_text_is_known(name: str) -> None:
    group, context = _group()
    for code in _INLINE.findall(_prose(ROOT / name)):
        words = code.split()
        if words[0] != "llm-unlearn" or len(words) < 2 or words[1].isupper():
            continue
        options = {"--help", "--version"}
        if not words[1].startswith("-"):
            known = group.get_command(context, words[1])
            if hasattr(known, "get_command") and len(words) > 2:  # a group, such as bench
                known = known.get_command(context, words[2])
            assert known is not None, f"{name}: {code}"
            options |= {o for parameter in known.params for o in parameter.opts}
        asked = {word.split("=")[0] for word in words if word.startswith("-")}
        assert asked <= options, f"{name}: {code}"


# --- the file tree


def _on_disk() -> set[str]:
    """Every file of the repository but what .gitignore names."""
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    ignored = [".git", *(pattern.strip("/") for pattern in patterns)]

    def walk(folder: Path) -> Iterator[Path]:
        for path in folder.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path

    return {path.relative_to(ROOT).as_posix() for path in walk(ROOT)}


def _drawn(block: Block) -> list[str]:
    """The paths of a tree, files and folders, in order; every line must say what the thing is."""
    above: list[str] = []
    drawn = []
    for line in filter(str.strip, block.body.splitlines()):
        depth, odd = divmod(len(line) - len(line.lstrip()), 2)
        name, *said = line.split(maxsplit=1)
        assert not odd, line
        assert depth <= len(above), line
        assert said, f"{name} is not explained"
        above[depth:] = [name]
        drawn.append("".join(above))
    return drawn


def _trees() -> list[tuple[str, Block]]:
    return [
        (name, block)
        for name in NAMES
        for block in _blocks(ROOT / name)
        if block.mark in ("tree", "outline")
    ]


def test_the_architecture_page_draws_every_file() -> None:
    ((_, block),) = [tree for tree in _trees() if tree[0] == "docs/architecture.md"]
    drawn = _drawn(block)
    files = [path for path in drawn if not path.endswith("/")]
    assert len(set(drawn)) == len(drawn)
    assert set(files) == _on_disk(), {
        "drawn, not on disk": sorted(set(files) - _on_disk()),
        "on disk, not drawn": sorted(_on_disk() - set(files)),
    }


def test_every_tree_covers_the_repository() -> None:
    disk = _on_disk()
    for name, block in _trees():
        drawn = _drawn(block)
        whole = tuple(
            path
            for path in drawn
            if path.endswith("/") and not any(o.startswith(path) and o != path for o in drawn)
        )
        files = {path for path in drawn if not path.endswith("/")}
        for path in whole:
            assert any(file.startswith(path) for file in disk), f"{name}: {path} is not there"
        assert files <= disk, f"{name}: {sorted(files - disk)} not on disk"
        if block.mark == "tree":
            left = {file for file in disk - files if not file.startswith(whole)}
            assert not left, f"{name}: {sorted(left)} not drawn"
