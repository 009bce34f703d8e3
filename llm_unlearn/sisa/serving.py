"""The adapters that serve, in memory: decrypted when first needed, let go of by a budget.

Guarantees: an adapter is held under the inputs it was trained on, so one that no longer serves is never
given for the one that does; `keep` forgets every other at once, with all that was made of it (stacks
and merges are made anew from the adapters that serve, never subtracted from). What was used longest ago
goes first when the budget is passed; what one answer needs together is held together, also beyond it.
The budget speaks of what is kept from one answer to the next. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from llm_unlearn.errors import Damaged
from llm_unlearn.sisa.checkpoints import Checkpoints

if TYPE_CHECKING:
    from llm_unlearn.models.experts import Stack
    from llm_unlearn.models.lora import AdapterHost, AdapterState

Serving = tuple[int, bytes]
"""A shard and the inputs of the checkpoint that serves it."""


class ServingAdapters:
    """Adapters of serving checkpoints by (shard, inputs).

    Args:
        budget: bytes kept between answers: adapters and the stack last used.

    Attributes:
        decrypted: how many checkpoints have been read and decrypted so far.
    """

    def __init__(self, checkpoints: Checkpoints, budget: int) -> None:
        self._checkpoints = checkpoints
        self._budget = budget
        self._held: dict[Serving, AdapterState] = {}  # least recently used first
        self._stack: tuple[tuple[Serving, ...], bool, Stack] | None = None
        self._lock = threading.RLock()
        self.decrypted = 0

    def adapters(self, wanted: Sequence[Serving]) -> list[AdapterState]:
        """The adapters asked for, in that order.

        Raises:
            Damaged: a checkpoint is gone or not what was written.
        """
        with self._lock:
            missing = [key for key in wanted if key not in self._held]
            if missing:
                listed = {
                    (item.shard, item.inputs): item for item in self._checkpoints.listed().values()
                }
                for key in missing:
                    if key not in listed:
                        raise Damaged(
                            f"The checkpoint that serves shard {key[0]} is gone.", "Run train."
                        )
                    self._held[key] = self._checkpoints.load(listed[key]).adapter
                    self.decrypted += 1
            found = []
            for key in wanted:
                self._held[key] = self._held.pop(key)  # now the most recently used
                found.append(self._held[key])
            return found

    def stacked(self, host: AdapterHost, wanted: Sequence[Serving], *, merged: bool) -> Stack:
        """The adapters side by side, or their merge alone; the last one asked for is kept.

        Raises:
            Damaged: see `adapters`.
        """
        from llm_unlearn.models.experts import stack
        from llm_unlearn.sisa.aggregate import merge

        with self._lock:
            held = self._stack
            if held is not None and held[:2] == (tuple(wanted), merged):
                return held[2]
            self._stack = None
            adapters = self.adapters(wanted)
            made = stack(host, [merge(adapters)] if merged else adapters)
            self._stack = (tuple(wanted), merged, made)
            self._evict()
            return made

    def keep(self, serving: Collection[Serving]) -> None:
        """Forget every adapter that does not serve, and the stack that holds one."""
        with self._lock:
            kept = set(serving)
            self._held = {key: state for key, state in self._held.items() if key in kept}
            if self._stack is not None and not kept.issuperset(self._stack[0]):
                self._stack = None

    @property
    def held(self) -> list[Serving]:
        """What is in memory, least recently used first."""
        with self._lock:
            return list(self._held)

    @property
    def bytes(self) -> int:
        """Bytes of tensors held."""
        with self._lock:
            adapters = sum(t.nbytes for state in self._held.values() for t in state.values())
            return adapters + (self._stack[2].bytes if self._stack else 0)

    def _evict(self) -> None:
        """Let go of what was used longest ago, at last of the stack itself."""
        while self.bytes > self._budget and self._held:
            del self._held[next(iter(self._held))]
        if self.bytes > self._budget:
            self._stack = None
