"""The opened pieces of a workspace, and what follows from them at this moment.

Guarantees: models load only when something needs them, one base model whatever the number of
shards; `wanted` and `states` are recomputed whenever any process changed the workspace. It changes
nothing by itself, but for `tidy`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.config import Config, TrainingConfig
from llm_unlearn.documents import Document
from llm_unlearn.errors import RecipeMismatch
from llm_unlearn.ledger import Ledger
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.parts import unpack_body, unpack_vectors
from llm_unlearn.retrieval.store import Embedder, Store
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.sisa.declared import Declarations
from llm_unlearn.sisa.layout import Layout, Slice
from llm_unlearn.sisa.layout import slices as lay_out

if TYPE_CHECKING:
    from llm_unlearn.models.chat import Example
    from llm_unlearn.models.lora import AdapterHost, AdapterState, LoraShape
    from llm_unlearn.sisa.build import ShardState
    from llm_unlearn.sisa.checkpoints import Checkpoints
    from llm_unlearn.sisa.recipe import Recipe

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # page breaks in a pasted notice


@dataclass
class Opened:
    """The pieces of one open workspace.

    Args:
        models: shared loader of models, so that several workspaces in one process (a never-had
            build beside the real one) use one base model; bound here to this workspace's recipe.
    """

    path: Path
    config: Config
    keyring: Keyring
    database: Database
    vault: Vault
    ledger: Ledger
    models: Models
    _wanted: tuple[int, bytes, Mapping[int, list[Slice]]] | None = field(default=None, repr=False)
    _recipe: tuple[Recipe | None] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Bind the models to this workspace's recipe."""
        self.models = self.models.bound(self._in_force)

    def _in_force(self) -> Recipe | None:
        """The saved recipe as last looked up: read once, and again when `wanted` finds another."""
        found = self._recipe
        if found is None:
            found = self._recipe = (self.saved_recipe(),)
        return found[0]

    @cached_property
    def store(self) -> Store:
        """What retrieval searches."""
        return Store(self.vault, self.models.embedder, self.config.retrieval, fate="store")

    @cached_property
    def router(self) -> Store:
        """The same over the corpus: which shard knows about a question."""
        return Store(self.vault, self.models.embedder, self.config.retrieval, fate="corpus")

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of all shards."""
        from llm_unlearn.sisa.checkpoints import Checkpoints

        return Checkpoints(self.path / "adapters", self.database, self.keyring)

    @property
    def layout(self) -> Layout:
        """Where subjects train."""
        training = self.training
        key = self.keyring.secret("placement")
        return Layout(key, training.shards, training.slices, training.placement, training.orders)

    @cached_property
    def declarations(self) -> Declarations:
        """What training documents declare of their group and risk."""
        return Declarations(self.vault)

    def shard_of(self, record: Record) -> int | None:
        """The shard in which a training document has its place; None if it has none."""
        said = self.declarations.one(record, self.training.placement)
        return None if said is None else self.layout.shard(record.subject, said)

    @property
    def training(self) -> TrainingConfig:
        """What the workspace is trained with: the saved recipe's; before the first, the config's.

        An edited config changes nothing until `train --retrain-all` adopts it.
        """
        saved = self.saved_recipe()
        return self.config.training if saved is None else saved.training

    def wanted(self) -> Mapping[int, list[Slice]]:
        """The slices of each shard that the live documents of closed generations ask for."""
        change, recipe = self.database.change(), self.recipe_digest()
        if self._wanted is None or self._wanted[:2] != (change, recipe):
            if self._wanted is None or self._wanted[1] != recipe:
                self._recipe = None
            self._wanted = (change, recipe, self.wanted_without(frozenset()))
        return self._wanted[2]

    def wanted_without(
        self, gone: Collection[bytes], back: Collection[bytes] = ()
    ) -> Mapping[int, list[Slice]]:
        """What would be asked for if the records in `gone` were not live, and those in `back` were."""
        opened = self.ledger.generation
        states = ("live", "fenced") if back else ("live",)
        closed = [
            record
            for record in self.vault.records(fate="corpus", states=states)
            if record.generation < opened
            and record.handle not in gone
            and (record.state == "live" or record.handle in back)
        ]
        declared = self.declarations.of(closed, self.training.placement)
        return lay_out(self.layout, self.recipe_digest(), closed, declared)

    def states(self) -> list[ShardState]:
        """Each shard as it stands: what is clean and what is missing."""
        from llm_unlearn.sisa.build import shard_states

        return shard_states(self.wanted(), self.checkpoints.listed())

    def adapter(self, state: ShardState) -> AdapterState | None:
        """The adapter that serves for a shard as it stands; None where the base model does alone.

        Raises:
            Damaged: its checkpoint is not what was written.
        """
        if state.serving is None:
            return None
        return self.checkpoints.load(self.checkpoints.listed()[state.serving.name]).adapter

    def dropped(self) -> frozenset[int]:
        """Shards whose adapter was retired: nothing is trained for them until asked for."""
        saved = self.database.value("dropped shards")
        return frozenset(json.loads(saved)) if saved else frozenset()

    def recipe_digest(self) -> bytes:
        """Digest of the recipe the workspace is trained with; before the first training, zeros."""
        return self.database.value("recipe digest") or bytes(32)

    def saved_recipe(self) -> Recipe | None:
        """The recipe the workspace is trained with."""
        from llm_unlearn.sisa.recipe import Recipe

        saved = self.database.value("recipe")
        return None if saved is None else Recipe.model_validate_json(saved)

    def current_recipe(self) -> Recipe:
        """The recipe of this machine and this config; pins threads and loads the base model."""
        return self._recipe_over(self.models.load(self.config.training).base.digest)

    def _recipe_over(self, base: str) -> Recipe:
        from llm_unlearn.sisa.recipe import current_recipe, pin_threads

        pin_threads(self.config.training.threads)
        return current_recipe(
            base,
            self.models.embedder.digest,
            self.config.training,
            self.keyring.secret("placement"),
        )

    def check_recipe(self) -> Recipe:
        """The saved recipe, if this machine computes the same bits.

        Raises:
            RecipeMismatch: it does not; naming what differs.
        """
        self._recipe = None
        saved = self.saved_recipe()
        if saved is None or saved.training == self.config.training:
            current = self.current_recipe()
        else:  # told apart without a model in a shape that nothing here was trained in
            current = self._recipe_over(self.models.base_digest)
        if saved is not None and saved.digest != current.digest:
            raise RecipeMismatch(
                f"{self.path} was trained with another recipe: "
                + "; ".join(saved.differences(current))
                + ".",
                "Restore what differs (pip install -c constraints.txt), or run "
                "`llm-unlearn train --retrain-all` to train every shard anew under this one.",
            )
        return current

    def tidy(self) -> None:
        """Clear away what a killed writer left; for the one writer, once it holds the lock.

        Raises:
            Damaged, WorkspaceVersion: see `Vault.sweep`.
        """
        from llm_unlearn.exports import Exports

        self.vault.sweep()
        Exports.create_table(self.database)
        Exports(self.database, self.keyring).sweep()
        self.checkpoints.sweep()

    def document(self, record: Record) -> Document:
        """The document of a record.

        Raises:
            KeyDestroyed: it has been deleted.
        """
        return unpack_body(self.vault.read(record, "body"))

    def vectors(self, record: Record) -> NDArray[np.float32]:
        """The vectors (chunks, dim) of a record that is not refused."""
        return unpack_vectors(self.vault.read(record, "vectors"))[1]

    def embed(self, text: str) -> NDArray[np.float32]:
        """The vectors (chunks, dim) that a text would have in the store."""
        packed = self.store.prepare(Document(id="query", text=_CONTROL.sub(" ", text)))
        return unpack_vectors(packed["vectors"])[1]

    def examples(self, record: Record) -> list[Example]:
        """A record's training examples, one unless it is longer than `training.max_tokens`.

        Raises:
            InputError: the model's chat template refuses this conversation.
        """
        from llm_unlearn.models.chat import encode

        tokenizer = self.models.host.base.tokenizer
        return encode(tokenizer, self.document(record), self.training.max_tokens)


_Key: TypeAlias = "tuple[str, str, LoraShape]"
"""The base model's reference, its dtype, and the adapters that it has room for."""
_LOADING = threading.RLock()
"""transformers loads one model at a time: how it does so is state of the whole process."""


@dataclass
class _Loaded:
    """What several `Models` share: the embedder, and the base model last loaded under its key."""

    embedder: Embedder | None = None
    host: tuple[_Key, AdapterHost] | None = None


@dataclass
class Models:
    """Models by config, loaded once, when first used, by whichever thread.

    Those of an open workspace (`Opened.models`) have room for adapters as its recipe trained them, whatever
    an edited config says; several workspaces of one recipe share one base model.
    """

    config: Config
    in_force: Callable[[], Recipe | None] = field(default=lambda: None, repr=False)
    _loaded: _Loaded = field(default_factory=_Loaded, repr=False)
    _host: tuple[_Key, AdapterHost] | None = field(default=None, init=False, repr=False)

    def bound(self, in_force: Callable[[], Recipe | None]) -> Models:
        """The same models for a workspace whose recipe in force `in_force` tells; None before the first."""
        return Models(self.config, in_force, self._loaded)

    @property
    def embedder(self) -> Embedder:
        """The embedder of store and router."""
        from llm_unlearn.models.embedder import SentenceEmbedder
        from llm_unlearn.sisa.recipe import pin_threads

        with _LOADING:
            if self._loaded.embedder is None:
                pin_threads(self.config.training.threads)
                self._loaded.embedder = SentenceEmbedder(self.config.embedder)
            return self._loaded.embedder

    @property
    def base_digest(self) -> str:
        """Digest of the base model's files, without loading it."""
        from llm_unlearn.models.reference import digest, resolve

        return digest(resolve(self.config.model))

    @property
    def loaded(self) -> bool:
        """Whether a base model is in memory."""
        return self._host is not None or self._loaded.host is not None

    @property
    def host(self) -> AdapterHost:
        """The base model with room for one adapter of the recipe in force.

        Raises:
            RecipeMismatch: the adapters were trained over another base model.
        """
        recipe = self.in_force()
        host = self.load(self.config.training if recipe is None else recipe.training)
        if recipe is not None and recipe.base_model != host.base.digest:
            raise RecipeMismatch(
                f"{self.config.model} is not the base model that the adapters were trained over: its "
                f"digest is {host.base.digest[:16]}, the recipe's {recipe.base_model[:16]}.",
                "Put that model back, or run `llm-unlearn train --retrain-all` to train over this one.",
            )
        return host

    def load(self, training: TrainingConfig) -> AdapterHost:
        """The base model with room for one adapter of this training; see `host` for the one in force."""
        from llm_unlearn.models.causal import load_causal
        from llm_unlearn.models.lora import AdapterHost, LoraShape
        from llm_unlearn.sisa.recipe import pin_threads

        shape = LoraShape(training.lora_rank, training.lora_alpha, training.top_layers)
        key = (self.config.model, training.dtype, shape)
        with _LOADING:
            for found in (self._host, self._loaded.host):
                if found is not None and found[0] == key:
                    self._host = found
                    return found[1]
            self._host = self._loaded.host = None  # let go of it before another is loaded
            pin_threads(training.threads)
            host = AdapterHost(load_causal(self.config.model, training.dtype), shape)
            self._host = self._loaded.host = (key, host)
            return host
