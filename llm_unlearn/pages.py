"""What every HTML page is made with: templates that escape all text, and text made printable.

Guarantees: what documents, models and requests say is escaped and cannot be markup; controls, marks that
reorder what is read, and surrogates are shown as U+FFFD, one for one; a name that a template lacks is an
error.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: str) -> str:
    """Text with what neither HTML nor a terminal may be given replaced; as long as before."""
    return _UNPRINTABLE.sub("\ufffd", text)


def templates(package: str) -> Environment:
    """The templates that lie beside a package's modules."""
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and type(value) is not Markup else value
