"""The data in a pickle, without unpickling it.

Guarantees: nothing is imported, called or built: a class or function that a pickle names becomes an
inert `Named`, what it would make of its arguments an inert `Made`. A pickle that names anything that a
vector store has no use for is refused. Work and memory are linear in the pickle's length.

Not guaranteed: protocols 0 and 1 beyond what they share with later ones; none of these stores writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from llm_unlearn.errors import Damaged, InputError

_PACKAGES: Final = (
    "langchain",
    "langchain_core",
    "langchain_community",
    "langchain_classic",
    "qdrant_client",
    "pydantic",
    "pydantic_core",
    "uuid",
    "datetime",
    "collections",
    "decimal",
)
_BUILTINS: Final = ("set", "frozenset", "list", "dict", "tuple", "bytearray", "object")
_NUMBERS: Final = ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")
_LONGEST: Final = 64  # bytes of a whole number


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that the pickle names."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Made:
    """What would be made by calling `of`; `state` is what it would be given afterwards."""

    of: Named
    arguments: object
    state: Any = None
    items: dict[object, object] = field(default_factory=dict)


class _Mark:
    """Where a group begins on the stack."""


_MARK: Final = _Mark()


def load(data: bytes, name: str) -> Any:
    """The one value in a pickle: Python's own plain values, `Named` and `Made`.

    Args:
        name: the file, for messages.

    Raises:
        InputError: it names something that does not belong there; do not open it with anything else.
        Damaged: it is cut off or no pickle.
    """
    try:
        return _Reader(data, name).run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError) as error:
        raise Damaged(f"{name} is no readable pickle.", "Is the folder complete?") from error


def _key(value: object) -> object:
    """A key, unless hashing or printing it could take the interpreter down (nested tuples)."""
    if isinstance(value, (str, int, float, bytes)) or value is None:
        return value
    raise ValueError("a key that no store writes")


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name, self._at = data, name, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self._data[self._at]
            self._at += 1
            if code == 0x2E:  # STOP
                return self._stack[-1]
            if code == 0x47:
                self._floats()
                continue
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"opcode {code}")
            step(self)

    def take(self, size: int) -> bytes:
        if size < 0 or self._at + size > len(self._data):
            raise ValueError("cut off")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))
        return int(value)

    def line(self) -> str:
        end = self._data.index(b"\n", self._at)
        return self.take(end - self._at + 1)[:-1].decode()

    def _floats(self) -> None:
        """A float and all that follow it at once: most of a vector store's pickle is these."""
        start = self._at - 1
        end = start
        while self._data[end : end + 1] == b"G" and end + 9 <= len(self._data):
            end += 9
        if end == start:
            raise ValueError("cut off")
        count = (end - start) // 9
        values = struct.unpack(">" + "xd" * count, self._data[start:end])
        self._stack.extend(values)
        self._at = end

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def group(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("no name")
        top = module.partition(".")[0]
        fits = (
            top in _PACKAGES
            or (
                module in ("builtins", "__builtin__", "copyreg", "copy_reg")
                and name in (*_BUILTINS, "_reconstructor")
            )
            or (top == "numpy" and name in _NUMBERS)
        )
        if not fits:
            raise InputError(
                f"{self._name} names {f'{module}.{name}'[:80]!r}, which no vector store keeps in a pickle.",
                "It may be made to do harm: do not open it with the program it came from.",
            )
        self.push(Named(module, name))

    def make(self, arguments: object, of: object) -> None:
        if not isinstance(of, Named):
            raise ValueError("a call of what is no name")
        self.push(Made(of, arguments))

    def build(self) -> None:
        state, made = self.pop(), self._stack[-1]
        if isinstance(made, Made):
            made.state = state

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Made):
            raise ValueError("items for what is no list")

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target = target.items
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items for what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def add_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise ValueError("items for what is no set")
        target.update(_key(value) for value in values)

    def text(self, form: str) -> None:
        self.push(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def raw(self, form: str) -> None:
        self.push(self.take(self.number(form)))

    def long(self, form: str) -> None:
        size = self.number(form)
        if size > _LONGEST:
            raise ValueError("a number that no store writes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def put(self, at: int) -> None:
        self._memo[at] = self._stack[-1]

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, at: int) -> None:
        self.push(self._memo[at])

    def tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) != count or _MARK in values:
            raise ValueError("too few values")
        del self._stack[-count:]
        self.push(values)

    def dict_of(self) -> None:
        values = self.group()
        self.push({})
        self.set_items(values)

    def new(self) -> None:
        arguments, of = self.pop(), self.pop()
        self.make(arguments, of)

    def new_ex(self) -> None:
        keywords, arguments, of = self.pop(), self.pop(), self.pop()
        self.make((arguments, keywords), of)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def append(self) -> None:
        self.extend([self.pop()])

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])


_STEPS: Final[dict[int, Callable[[_Reader], object]]] = {
    0x80: lambda r: r.take(1),  # PROTO
    0x95: lambda r: r.take(8),  # FRAME
    ord("("): lambda r: r.push(_MARK),
    ord("0"): lambda r: r.pop(),
    ord("1"): lambda r: r.group(),
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("J"): lambda r: r.push(r.number("i")),
    ord("K"): lambda r: r.push(r.number("B")),
    ord("M"): lambda r: r.push(r.number("H")),
    0x8A: lambda r: r.long("B"),
    0x8B: lambda r: r.long("i"),
    ord("X"): lambda r: r.text("I"),
    0x8C: lambda r: r.text("B"),
    0x8D: lambda r: r.text("Q"),
    ord("B"): lambda r: r.raw("I"),
    ord("C"): lambda r: r.raw("B"),
    0x8E: lambda r: r.raw("Q"),
    0x96: lambda r: r.raw("Q"),
    ord("]"): lambda r: r.push([]),
    ord("}"): lambda r: r.push({}),
    ord(")"): lambda r: r.push(()),
    0x8F: lambda r: r.push(set()),
    ord("l"): lambda r: r.push(r.group()),
    ord("t"): lambda r: r.push(tuple(r.group())),
    0x85: lambda r: r.tuple_of(1),
    0x86: lambda r: r.tuple_of(2),
    0x87: lambda r: r.tuple_of(3),
    ord("d"): lambda r: r.dict_of(),
    0x91: lambda r: r.push(frozenset(_key(value) for value in r.group())),
    ord("a"): lambda r: r.append(),
    ord("e"): lambda r: r.extend(r.group()),
    ord("s"): lambda r: r.set_item(),
    ord("u"): lambda r: r.set_items(r.group()),
    0x90: lambda r: r.add_items(r.group()),
    ord("q"): lambda r: r.put(r.number("B")),
    ord("r"): lambda r: r.put(r.number("I")),
    0x94: lambda r: r.memoize(),
    ord("h"): lambda r: r.get(r.number("B")),
    ord("j"): lambda r: r.get(r.number("I")),
    ord("c"): lambda r: r.name(r.line(), r.line()),
    0x93: lambda r: r.stack_global(),
    ord("R"): lambda r: r.new(),
    0x81: lambda r: r.new(),
    0x92: lambda r: r.new_ex(),
    ord("b"): lambda r: r.build(),
}


def fields(value: object) -> dict[str, Any]:
    """The fields of an object as Python or pydantic pickles it; empty if it has none."""
    state = value.state if isinstance(value, Made) else None
    if isinstance(state, dict) and isinstance(state.get("__dict__"), dict):
        state = state["__dict__"]
    return {k: v for k, v in state.items() if isinstance(k, str)} if isinstance(state, dict) else {}
