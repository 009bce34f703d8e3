"""Every error that a user can meet, in one tree.

Guarantees: each error says in one line what is wrong, names the thing, and says what to do about
it; each class has one exit code, the same in the CLI and in scripts. A failure that is not an
`UnlearnError` is a defect of this package.

    UnlearnError
    ├── InputError            3   a document, a config, a request: what the user handed over
    ├── NotFound              4   a subject, an id, a receipt that is not there
    ├── WorkspaceError        5   the directory cannot be used as asked
    │   ├── WorkspaceMissing
    │   ├── WorkspaceLocked
    │   ├── WorkspaceReadOnly
    │   ├── WorkspaceVersion
    │   └── RecipeMismatch
    ├── Damaged               6   a file is not what was written
    │   └── KeyDestroyed
    ├── KeysMissing           6
    ├── AccessDenied          7   the caller may not, or the policy refuses
    ├── VerificationFailed    8   a receipt or a digest does not hold
    └── EnvironmentFailure    9   disk, models, missing packages
"""

from __future__ import annotations

from typing import ClassVar


class UnlearnError(Exception):
    """Base of all errors meant for users.

    Args:
        problem: one line that names the thing and what is wrong with it.
        remedy: one line that says what to do; empty if the problem says it all.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())


class InputError(UnlearnError):
    """What the user handed over cannot be used: documents, config, arguments."""

    exit_code = 3


class NoEffect(InputError):
    """A method with these settings would leave every weight as it is."""


class NotFound(UnlearnError):
    """The thing asked for is not there."""

    exit_code = 4


class WorkspaceError(UnlearnError):
    """The workspace directory cannot be used as asked."""

    exit_code = 5


class WorkspaceMissing(WorkspaceError):
    """No workspace at that path."""


class WorkspaceLocked(WorkspaceError):
    """Another process is writing to the workspace."""


class WorkspaceReadOnly(WorkspaceError):
    """A write was asked of a workspace that cannot be written."""


class WorkspaceVersion(WorkspaceError):
    """The workspace was written by another version of the format."""


class RecipeMismatch(WorkspaceError):
    """The bits of this environment would differ from those the workspace was trained with."""


class Damaged(UnlearnError):
    """A file is not what was written: wrong length, failed authentication, impossible value."""

    exit_code = 6


class KeyDestroyed(Damaged):
    """The key of a record has been destroyed: its ciphertext can never be read again."""


class KeysMissing(UnlearnError):
    """The key directory is missing, incomplete, or belongs to another workspace."""

    exit_code = 6


class AccessDenied(UnlearnError):
    """The caller may not see this, or did not say who they are."""

    exit_code = 7


class VerificationFailed(UnlearnError):
    """A signature, a digest or a chain does not hold."""

    exit_code = 8


class EnvironmentFailure(UnlearnError):
    """The machine cannot do it: disk full, model missing, package not installed."""

    exit_code = 9
