"""One forgetting run: from weights and texts to other weights, with an account of what it cost.

Guarantees: a pure function of (weights, texts, method, settings), bit for bit with the thread count
pinned; an interrupted run goes on from its file to the same bits; gradients are clipped; a run that makes
utility fall below its floor goes back to the last weights that kept it, goes on at half the rate, and says
so; weights that did not move are an error, not a result. Nothing is removed from anywhere: see the
package's docstring.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_unlearn.errors import InputError, NoEffect
from llm_unlearn.forget import state as states
from llm_unlearn.forget.data import Material, inputs_digest
from llm_unlearn.forget.method import Direct, Groups, Method, Stepwise
from llm_unlearn.forget.passes import Item, Passes
from llm_unlearn.forget.result import Look, Measured, Record, Stop, Verdict, versions
from llm_unlearn.forget.settings import RunSettings
from llm_unlearn.forget.weights import FullWeights, State, Weights, digest, without
from llm_unlearn.models.lora import AdapterHost

Told = Callable[[str, int, int, float], None]
_HALVINGS = 6
_SAVE_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """The weights that the run ends with, and its account."""

    state: State
    record: Record


def run(
    weights: Weights,
    start: Mapping[str, Tensor],
    method: Method,
    material: Material,
    settings: RunSettings,
    *,
    resume: Path | None = None,
    progress: Told | None = None,
    unmoved: bool = False,
) -> Outcome:
    """Forget.

    Args:
        start: the weights to begin with; what they say is the reference.
        resume: where an unfinished run is kept; the caller removes it once the outcome is safe.
        progress: told of each step as (method, done, total, loss).
        unmoved: give the start with the stop "no effect" where no weight moved, instead of an error.

    Raises:
        InputError: the method needs texts that are not there, or there is nothing to forget.
        NoEffect: no weight moved.
    """
    _check(method, material)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    return _Run(weights, dict(start), method, material, settings, resume, progress).go(unmoved)


def _check(method: Method, material: Material) -> None:
    if isinstance(method, Stepwise):
        if method.needs_retain() and not material.retain:
            raise InputError(
                f"{method.name} needs text to keep, or it wrecks the model.",
                "Give --retain documents, or choose ga, ce-u, undial, or retain_weight 0.",
            )
        if method.answers != "none" and len(material.preferred) != len(material.forget):
            raise InputError(
                f"{method.name} needs another answer for each text to forget.",
                "Give conversations.",
            )


class _Run:
    def __init__(
        self,
        weights: Weights,
        start: State,
        method: Method,
        material: Material,
        settings: RunSettings,
        resume: Path | None,
        progress: Told | None,
    ) -> None:
        self.weights = weights
        self.start = start
        self.method = method
        self.settings = settings
        self.resume = resume
        self.progress = progress
        self.seed = str(settings.seed).encode()
        self.passes = Passes(weights, getattr(torch, settings.dtype))
        self.began = time.monotonic()
        self.looks: list[Look] = []
        self.inputs = inputs_digest(material)
        weights.load(start)
        items = self.passes.items
        self.forget, self.retain = items(material.forget), items(material.retain)
        self.preferred, self.utility = items(material.preferred), items(material.utility)

    def go(self, unmoved: bool) -> Outcome:
        self.absent = self._absent()
        with self.passes.open():
            self.weights.load(self.start)
            self.before = self._measure()
            self.target = self._target()
            try:
                if isinstance(self.method, Direct):
                    return self._move(self.method)
                if isinstance(self.method, Stepwise):
                    return self._steps(self.method)
            except NoEffect:
                if not unmoved:
                    raise
                return self._finish(self.start, 0, 0, "no effect", {})
        raise AssertionError(f"{self.method.name} neither steps nor moves")

    # --- what is measured

    def _absent(self) -> float | None:
        """What the base model gives without a trained adapter; None if there is no such thing."""
        weights = self.weights
        trained = any(t.any() for n, t in self.start.items() if ".lora_B." in n)
        if not isinstance(weights, AdapterHost) or not trained or self.settings.target is not None:
            return None
        weights.load(without(self.start))
        with self.passes.open():
            return _mean(self.passes.probabilities(self._some(self.forget)))

    def _target(self) -> float:
        if self.settings.target is not None:
            return self.settings.target
        if self.absent is None:
            return self.before.forget / 10
        if self.before.forget <= self.absent and self.settings.rules:
            raise InputError(
                "There is nothing to forget: the texts are no likelier with the adapter "
                f"({self.before.forget:.3g}) than without it ({self.absent:.3g}).",
                "Give --target to go lower all the same.",
            )
        return self.absent

    def _some(self, items: Sequence[Item]) -> list[Item]:
        """A fixed sample, spread over the list."""
        count = min(len(items), self.settings.sample)
        return [items[i * len(items) // count] for i in range(count)]

    def _measure(self) -> Measured:
        found = [
            _mean(self.passes.probabilities(self._some(items))) if items else None
            for items in (self.forget, self.retain, self.utility)
        ]
        assert found[0] is not None
        return Measured(
            forget=found[0], retain=found[1], utility=found[2] if self.utility else found[1]
        )

    def _wrecked(self, measured: Measured) -> bool:
        if measured.utility is None or self.before.utility is None:
            return False
        return not measured.utility >= self.settings.utility_floor * self.before.utility

    # --- stepwise methods

    def _steps(self, method: Stepwise) -> Outcome:
        settings, weights = self.settings, self.weights
        layer = method.stops_at(weights.first_layer, len(weights.layers))
        width = self.forget[0].states.shape[-1] if self.forget[0].states is not None else None
        if layer is not None:
            width = width or weights.base.model.get_input_embeddings().embedding_dim
            method_ready = method.prepare(width, self.seed)
        else:
            method_ready = method
        remember = self.passes.remember
        forget = remember(self.forget, method.forget_reference, layer)
        preferred = remember(self.preferred, method.forget_reference, layer)
        retain = self.retain if method.needs_retain() else []
        retain = remember(retain, method.retain_reference, layer)
        per_epoch = -(-len(forget) // settings.batch_size)
        total = settings.epochs * per_epoch
        optimizer = torch.optim.AdamW(
            weights.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            foreach=True,
        )
        memory: dict[str, float] = {}
        key = self._key()
        done, kept, kept_at = 0, self.start, 0
        since, retried = 0, 0  # the step of the last return, and how many there were
        stop: Stop | None = None
        found = states.load(self.resume, key) if self.resume else None
        if found is not None:
            done, kept, kept_at = found.plain["done"], dict(found.kept), found.plain["kept"]
            since, retried = found.plain["since"], found.plain["retried"]
            memory, self.passes.tokens = dict(found.plain["memory"]), found.plain["tokens"]
            self.looks = [Look.model_validate(look) for look in found.plain["looks"]]
            self.began -= found.plain["seconds"]
            weights.load(found.now)
            states.restore(optimizer, self._named(), found, done - since)
        saved = time.monotonic()
        while done < total and stop is None:
            batch = self._batch(done, per_epoch, forget, retain, preferred, method)
            rate = settings.learning_rate * settings.strength / 2**retried
            rate *= min(1.0, (done - since + 1) / (settings.warmup_steps + 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            out = self.passes.forward(batch, layer)
            groups = Groups(
                out.get("forget"), out.get("retain"), out.get("preferred"), memory=memory
            )
            loss = method_ready.loss(groups)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights.parameters(), settings.clip)
            optimizer.step()
            done += 1
            value = float(loss.detach())
            if self.progress is not None:
                self.progress(method.name, done, total, value)
            if not math.isfinite(value):
                stop = "diverged"
            elif done % settings.check_every == 0 or done == total:
                measured = self._measure()
                self.looks.append(Look(at=done, loss=value, measured=measured))
                stop = self._judge(measured)
                if stop != "utility" or not settings.rules:
                    kept, kept_at = weights.state(), done
                elif retried < settings.retries and done < total:
                    weights.load(kept)
                    optimizer.state.clear()
                    since, retried, stop = done, retried + 1, None
                due = stop is None and time.monotonic() - saved >= _SAVE_SECONDS
                if self.resume is not None and due:
                    place = {"done": done, "kept": kept_at, "since": since, "retried": retried}
                    self._save(optimizer, key, kept, {**place, "memory": memory})
                    saved = time.monotonic()
        return self._finish(kept, kept_at, done, stop or "steps", {"retries": float(retried)})

    def _judge(self, measured: Measured) -> Stop | None:
        if not self.settings.rules:
            return None
        if self._wrecked(measured):
            return "utility"
        return "forgotten" if measured.forget <= self.target else None

    def _batch(
        self,
        step: int,
        per_epoch: int,
        forget: Sequence[Item],
        retain: Sequence[Item],
        preferred: Sequence[Item],
        method: Stepwise,
    ) -> dict[str, list[Item]]:
        size = self.settings.batch_size
        epoch, place = divmod(step, per_epoch)
        chosen = self._order(b"forget", epoch, len(forget))[place * size : (place + 1) * size]
        batch = {"forget": [forget[i] for i in chosen]} if method.uses_forget else {}
        if retain:
            batch["retain"] = [
                retain[self._order(b"retain", n // len(retain), len(retain))[n % len(retain)]]
                for n in range(step * size, (step + 1) * size)
            ]
        if method.answers != "none":
            batch["preferred"] = [preferred[i] for i in chosen]
        return batch

    def _order(self, kind: bytes, epoch: int, count: int) -> list[int]:
        order = list(range(count))
        key = hashlib.sha256(kind + epoch.to_bytes(8, "big") + self.seed).digest()
        random.Random(key).shuffle(order)
        return order

    # --- methods that make one move

    def _move(self, method: Direct) -> Outcome:
        def told(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(method.name, done, total, 0.0)

        move = method.move(self.passes, self.forget, self.retain, self.seed, told)
        scale = self.settings.strength
        for _ in range(_HALVINGS + 1):
            try:
                state = dict(move.at(scale))
            except NoEffect:
                if not self.looks:
                    raise
                break  # what kept utility would be nothing at all
            self.weights.load(state)
            measured = self._measure()
            self.looks.append(Look(at=scale, loss=None, measured=measured))
            if not self.settings.rules or not self._wrecked(measured):
                return self._finish(state, 1, 1, "one move", {**move.report, "taken": scale})
            scale /= 2
        return self._finish(self.start, 0, 1, "utility", {**move.report, "taken": 0.0})

    # --- the end, and what is kept on the way

    def _finish(
        self, state: State, at: int, done: int, stop: Stop, report: dict[str, float]
    ) -> Outcome:
        self.weights.load(state)
        same = all(state[name].equal(self.start[name]) for name in self.weights.names)
        if same and stop not in ("utility", "diverged", "no effect"):
            raise NoEffect(f"{self.method.name} moved no weight.", "Raise its rate or strength.")
        after = self._measure()
        verdict: Verdict = "partly"
        finite = all(t.isfinite().all() for t in state.values())
        if (same and stop != "no effect") or self._wrecked(after) or not finite:
            verdict = "failed"
        elif after.utility is None:
            verdict = "unmeasured"
        elif after.forget <= self.target:
            verdict = "forgotten"
        base = self.weights.base
        record = Record(
            method=self.method.name,
            citation=self.method.citation,
            method_settings=self.method.model_dump(mode="json"),
            settings=self.settings,
            weights="full" if isinstance(self.weights, FullWeights) else "adapter",
            model=base.reference,
            model_digest=base.digest,
            inputs=self.inputs,
            start=digest(self.start),
            end=digest(state),
            texts={
                "forget": len(self.forget),
                "retain": len(self.retain),
                "utility": len(self.utility),
            },
            target=self.target,
            before=self.before,
            after=after,
            looks=tuple(self.looks),
            steps=at,
            stop=stop,
            verdict=verdict,
            report={**report, "steps done": float(done)},
            versions=versions(),
            seconds=round(time.monotonic() - self.began, 3),
            tokens=self.passes.tokens,
        )
        return Outcome(state, record)

    def _key(self) -> str:
        decides = {
            "method": self.method.name,
            "own": self.method.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "model": self.weights.base.digest,
            "start": digest(self.start),
            "inputs": self.inputs,
            "versions": versions(),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def _save(
        self,
        optimizer: torch.optim.AdamW,
        key: str,
        kept: State,
        place: dict[str, object],
    ) -> None:
        assert self.resume is not None
        average, square = states.moments(optimizer, self._named())
        plain = {
            **place,
            "tokens": self.passes.tokens,
            "seconds": time.monotonic() - self.began,
            "looks": [look.model_dump() for look in self.looks],
        }
        unfinished = states.Unfinished(self.weights.state(), average, square, kept, plain)
        states.save(self.resume, key, unfinished)

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(zip(self.weights.names, self.weights.parameters(), strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
