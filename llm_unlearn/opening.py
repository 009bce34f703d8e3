"""A workspace's files, made and opened.

Guarantees: the database comes last and in one transaction, so that a killed `make` leaves no workspace;
it refuses keys inside the workspace. Opening loads no model and changes nothing but an older
format, which a writer brings up to date.
"""

from __future__ import annotations

import os
import secrets as random
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from llm_unlearn.config import Config, dump_config, load_config
from llm_unlearn.errors import InputError, WorkspaceMissing
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.ledger import Ledger
from llm_unlearn.opened import Models, Opened
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.vault import Vault

PUBLIC_KEY = "receipts.pub.pem"


def make(
    path: Path, keys: str | Path | None, config: Config, secrets: Mapping[str, bytes] | None
) -> Path:
    """Make a new workspace at an absolute path; its key directory. Arguments as `Workspace.create`.

    Raises:
        InputError: the path is taken, or the keys would lie inside the workspace.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already.", "Choose a new directory.")
    home = Path(keys).absolute() if keys is not None else _default_keys()
    if home.resolve().is_relative_to(path.resolve()):
        raise InputError(
            f"The keys ({home}) would lie inside the workspace.",
            "Choose a directory outside it and outside its backups.",
        )
    from llm_unlearn.exports import Exports
    from llm_unlearn.sisa.checkpoints import Checkpoints
    from llm_unlearn.takedown.envelope import public_pem
    from llm_unlearn.takedown.journal import Journal
    from llm_unlearn.takedown.tombstones import Tombstones

    with closing(Keyring.create(home, secrets=secrets)) as keyring:
        with os_errors(f"write {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(home / PUBLIC_KEY, public_pem(keyring.secret("signing")), mode=0o644)
        write_atomic(path / "config.yaml", dump_config(config).encode())
        made = Database.open(path / "workspace.db", create=True)
        with made as database, database.transaction():
            Vault(database, keyring)
            Checkpoints.create_table(database)
            Exports.create_table(database)
            Journal.create_table(database)
            Tombstones.create_table(database)
            database.set_value("keys", str(home).encode())
    return home


def open_pieces(
    path: Path, keys: str | Path | None, models: Models | None, readonly: bool
) -> Opened:
    """The pieces of the workspace at an absolute path. Arguments and errors as `Workspace.open`."""
    if not (path / "workspace.db").is_file():
        raise WorkspaceMissing(f"There is no workspace at {path}.", f"Run: llm-unlearn init {path}")
    config = load_config(path / "config.yaml")
    with ExitStack() as stack:
        database = stack.enter_context(Database.open(path / "workspace.db", readonly=readonly))
        saved = database.value("keys")
        if saved is None:
            raise WorkspaceMissing(
                f"{path} was never finished.", f"Remove it and run: llm-unlearn init {path}"
            )
        keyring = stack.enter_context(closing(Keyring.open(Path(keys or saved.decode()))))
        vault = Vault(database, keyring)
        vault.verify_rows()
        stack.pop_all()  # open from here on, until `Workspace.close`
    return Opened(
        path=path,
        config=config,
        keyring=keyring,
        database=database,
        vault=vault,
        ledger=Ledger(database, vault),
        models=models or Models(config),
    )


def _default_keys() -> Path:
    chosen = os.environ.get("LLM_UNLEARN_KEYS")
    home = Path(chosen) if chosen else Path.home() / ".local" / "share" / "llm-unlearn" / "keys"
    return home.expanduser().absolute() / random.token_hex(8)
