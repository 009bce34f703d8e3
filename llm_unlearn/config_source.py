"""Settings as people write them, YAML files and `--set` overrides, and errors that point there.

Guarantees: no YAML tag runs code; a key written twice, an alias, or a value that YAML cannot hold
is refused rather than guessed; every error is one line that names where the value was written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from llm_unlearn.errors import InputError
from llm_unlearn.formats import quote, show

KeyPath = tuple[str | int, ...]


@dataclass(slots=True)
class Written:
    """Values, and where each of them was written.

    `places` maps a key path to its place as shown to the user and to its rank in reading order.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, tuple[int, str]] = field(default_factory=dict)

    def place(self, path: KeyPath) -> tuple[int, str]:
        """Where a value, or the nearest thing around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (0, "the settings"))

    def put(self, path: tuple[str, ...], value: Any, place: tuple[int, str]) -> None:
        """Set a value, replacing what was written there.

        Raises:
            InputError: a part of the path is a value, and holds no keys.
        """
        at = self.values
        for depth, part in enumerate(path[:-1]):
            below = at.setdefault(part, {})
            if not isinstance(below, dict):
                raise InputError(
                    f"{place[1]}: {'.'.join(path[: depth + 1])} is a {type(below).__name__} and "
                    f"holds no key {path[depth + 1]!r}.",
                    "Set it as a whole.",
                )
            at = below
            self.places.setdefault(path[: depth + 1], place)
        at[path[-1]] = value
        self.places = {k: v for k, v in self.places.items() if k[: len(path)] != path}
        self.places[path] = place


def read_yaml(path: Path) -> Written:
    """The values of a YAML file, which must be one mapping or empty.

    Raises:
        InputError: the file cannot be read, or is not plain YAML.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"The config {show(path)} cannot be read: {error.strerror or error}.",
            "Check the path and who may read it.",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{show(path)}: not UTF-8.", "Save it as UTF-8 text.") from error
    values, lines = _parse(text, show(path))
    if values is None:
        return Written()
    if not isinstance(values, dict):
        raise InputError(
            f"{show(path)}: line 1: the config is a {type(values).__name__}, not keys with values.",
            "Write `key: value` lines; configs/default.yaml shows all of them.",
        )
    return Written(values, {at: (line, f"{show(path)}: line {line}") for at, line in lines.items()})


def apply_override(written: Written, override: str, rank: int) -> None:
    """Put one `a.b=value` on top; `rank` orders it after the file and the earlier ones.

    Raises:
        InputError: it is not of that form, or its value is not YAML.
    """
    shown = f"--set {override if override.isprintable() else repr(override)}"
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    name, sign, text = override.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not sign or not all(path):
        raise InputError(
            f"{shown}: not of the form key.key=value.", "For example: --set training.epochs=6"
        )
    value, _ = _parse(text, shown)
    written.put(path, value, (1_000_000_000 + rank, shown))


def _parse(text: str, shown: str) -> tuple[Any, dict[KeyPath, int]]:
    """The value, and the line of each key path in it, counted from 1."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, {}
            # Walk first: building the values shares what an alias repeats, and can run away.
            lines = dict(_walk(root, (), set(), shown))
            return loader.construct_document(root), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join((error.problem or error.context or "unreadable").split())
        raise InputError(f"{shown}: {line}not valid YAML: {problem}.", "Correct it.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{shown}: not valid YAML: {reason}.", "Remove it.") from error
    except RecursionError as error:
        raise InputError(f"{shown}: nested too deeply.", "No key needs more than five.") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{shown}: a value cannot be read: {reason}.", "Correct it.") from error


def _walk(
    node: yaml.Node, path: KeyPath, seen: set[int], shown: str
) -> Iterator[tuple[KeyPath, int]]:
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise InputError(
            f"{shown}: line {line}: this value is used again by an alias (*).",
            "Write it out in both places.",
        )
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                name = quote(key.value) if isinstance(key, yaml.ScalarNode) else "here"
                raise InputError(
                    f"{shown}: line {line}: the key {name} is not text.",
                    "Use one of the keys in configs/default.yaml; put quotes around it if it is.",
                )
            if key.value in lines:
                raise InputError(
                    f"{shown}: line {line}: the key {quote(key.value)} was already given in line "
                    f"{lines[key.value]}.",
                    "Keep one of the two.",
                )
            lines[key.value] = line
            yield (*path, key.value), line
            yield from _walk(value, (*path, key.value), seen, shown)
    elif isinstance(node, yaml.ScalarNode):
        if any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise InputError(
                f"{shown}: line {line}: the value holds half a character (an escape \\ud800 to "
                "\\udfff).",
                "Write the character itself.",
            )
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _walk(item, (*path, index), seen, shown)


def explain(error: ValidationError, written: Written, model: type[BaseModel]) -> InputError:
    """One line for the first error in reading order, and what would be right."""
    errors = sorted(
        error.errors(include_url=False), key=lambda one: written.place(tuple(one["loc"]))[0]
    )
    first = errors[0]
    path, owner, info = _follow(tuple(first["loc"]), model)
    place = written.place(path)[1]
    name = ".".join(str(part) for part in path)
    name = name if name.isprintable() else repr(name)
    if first["type"] == "extra_forbidden":
        problem, remedy = "unknown key", _known(str(first["loc"][-1]), owner, model)
    elif first["type"] == "missing":
        problem, remedy = "this key is missing", _describe(info)
    elif first["type"] == "value_error":
        problem, _, remedy = first["msg"].removeprefix("Value error, ").rpartition("; ")
        if problem:
            remedy = remedy[:1].upper() + remedy[1:] + "."
        else:  # it says what is wrong, and that is remedy enough
            problem, remedy = remedy.removesuffix("."), ""
    else:
        problem = first["msg"].removeprefix("Input ").replace("valid tuple", "list")
        if first["type"] == "model_type":
            problem = "should hold keys with values"
        remedy = _similar(first) or _describe(info)
    shown = "" if first["type"] == "missing" else _value(first["input"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InputError(f"{place}: {name}{shown}: {problem}{more}.", remedy)


def _follow(
    loc: KeyPath, model: type[BaseModel]
) -> tuple[KeyPath, type[BaseModel], FieldInfo | None]:
    """The part of a pydantic location that is a key path, the model that owns it, and its field."""
    owner, info, path = model, None, ()  # type: tuple[type[BaseModel], FieldInfo | None, KeyPath]
    at: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int):
            path = (*path, part)
        elif at is None:
            break
        else:
            owner, info = at, at.model_fields.get(part)
            path = (*path, part)
            at = None if info is None else _model_in(info.annotation)
    return path, owner, info


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _known(name: str, owner: type[BaseModel], model: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name, owner.model_fields, n=1)
    elsewhere = [path for path in _paths(model, "") if path.rpartition(".")[2] == name]
    if near or elsewhere:
        return f"Did you mean {(near or elsewhere)[0]!r}?"
    return f"Known here are {', '.join(owner.model_fields)}."


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _paths(info.annotation, f"{prefix}{name}.")


def _similar(error: ErrorDetails) -> str:
    expected = str(error.get("ctx", {}).get("expected", ""))
    choices = [part for part in expected.split("'") if part.strip() not in ("", ",", "or")]
    near = difflib.get_close_matches(str(error["input"]), choices, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _describe(info: FieldInfo | None) -> str:
    if info is None or not info.description:
        return "Correct the value."
    if info.is_required() or isinstance(info.default, BaseModel | tuple):
        return f"Meaning: {info.description}"
    default = yaml.safe_dump(info.default, allow_unicode=True).removesuffix("...\n").strip()
    return f"Meaning: {info.description} Default: {default}."


def _value(value: Any) -> str:
    if isinstance(value, dict | list | tuple | BaseModel):
        return ""
    text = repr(value)
    return f" = {text if len(text) <= 60 else text[:57] + '...'}"
