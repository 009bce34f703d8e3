"""The methods, one module each. Names and settings are checked here; the maths is in the modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from llm_unlearn.errors import InputError
from llm_unlearn.forget.method import Method
from llm_unlearn.forget.methods.ascent import GradientAscent
from llm_unlearn.forget.methods.ascent_kl import AscentKL
from llm_unlearn.forget.methods.ceu import CEU
from llm_unlearn.forget.methods.dampening import Dampening
from llm_unlearn.forget.methods.difference import GradientDifference
from llm_unlearn.forget.methods.finetune import FineTune
from llm_unlearn.forget.methods.influence import Influence
from llm_unlearn.forget.methods.negation import Negation
from llm_unlearn.forget.methods.npo import NPO
from llm_unlearn.forget.methods.pdu import PDU
from llm_unlearn.forget.methods.preference import AltPO, IdkDPO
from llm_unlearn.forget.methods.rmu import RMU, AdaptiveRMU
from llm_unlearn.forget.methods.satimp import SatImp
from llm_unlearn.forget.methods.simnpo import SimNPO
from llm_unlearn.forget.methods.undial import UNDIAL
from llm_unlearn.forget.methods.wga import WGA

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        GradientAscent,
        GradientDifference,
        AscentKL,
        FineTune,
        NPO,
        SimNPO,
        IdkDPO,
        AltPO,
        RMU,
        AdaptiveRMU,
        UNDIAL,
        WGA,
        SatImp,
        CEU,
        PDU,
        Negation,
        Dampening,
        Influence,
    )
}


def method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method by name, with its settings checked.

    Raises:
        InputError: no such method, or a setting that cannot be, with the consequence and what to do.
    """
    kind = METHODS.get(name)
    if kind is None:
        raise InputError(f"There is no method {name!r}.", f"Choose one of: {', '.join(METHODS)}.")
    try:
        return kind.model_validate(dict(settings or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(kind.model_fields) or "none"
        raise InputError(
            f"{name}: {key} = {first['input']!r}: {first['msg'].removeprefix('Value error, ')}.",
            f"Settings of {name}: {known}.",
        ) from error
