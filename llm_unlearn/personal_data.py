"""Which kinds of personal data a text holds.

Presidio's recognisers (https://github.com/data-privacy-stack/presidio) for what has a form or a
checksum: e-mail addresses, phone numbers (phonenumbers), IBANs, payment cards, US social security
numbers, IP addresses, Bitcoin wallets; and dates of birth, where the sentence says that somebody
was born. No language model and no network: the list of top-level domains is the one inside the
tldextract package.

Guarantees: the answer depends on the text alone. A text is looked at in overlapping windows, so
that no text is long enough for a pattern to run into Presidio's time limit, which would drop its
findings silently.

Not guaranteed: that everything is found. Names, addresses and what a reader would infer are not
looked for, and national numbers are those of the countries that Presidio's recogniser knows.
"""

from __future__ import annotations

import functools
from typing import Any

from llm_unlearn.errors import EnvironmentFailure

WINDOW = 4096  # characters looked at at once
OVERLAP = 320  # an e-mail address has at most 254 characters
# Presidio's own scores: 1 when a checksum holds, 0.4 for a valid phone number, 0.5 and 0.6 for
# distinctive forms; what it calls weak (any nine digits, say) lies below.
THRESHOLD = 0.4
PHONE_DIGITS = 7

_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?:the\s+)?(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_DATE = (
    rf"(?:{_DAY}(?:\s+of)?\s+{_MONTH},?\s+\d{{4}}|{_MONTH}\s+{_DAY},?\s+\d{{4}}|"
    r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}([/.-])\d{1,2}\1(?:\d{4}|\d{2}))"
)
_BIRTH = (
    r"\b(?:born|birth|birthday|birthdate|date[- ]of[- ]birth|d\.?o\.?b)\b[^.\n\d]{0,40}?"
    rf"\b{_DATE}\b"
)


def detect(text: str) -> frozenset[str]:
    """The kinds of personal data found in the text, of those in `separation.Kind`.

    Raises:
        EnvironmentFailure: the optional package is not installed.
    """
    kinds: set[str] = set()
    for start in range(0, max(1, len(text) - OVERLAP), WINDOW - OVERLAP):
        window = text[start : start + WINDOW]
        for kind, recogniser in _recognisers():
            if kind not in kinds and any(
                found.score >= THRESHOLD and _believable(kind, window[found.start : found.end])
                for found in recogniser.analyze(window, recogniser.supported_entities)
            ):
                kinds.add(kind)
    return frozenset(kinds)


def _believable(kind: str, found: str) -> bool:
    """Whether a phone number is long enough: some countries have valid ones that are years."""
    return kind != "phone" or sum(c.isdigit() for c in found) >= PHONE_DIGITS


def require() -> None:
    """Load the detector now, so that a missing package is told before any work is done.

    Raises:
        EnvironmentFailure: the optional package is not installed.
    """
    _recognisers()


@functools.cache
def _recognisers() -> tuple[tuple[str, Any], ...]:
    # Presidio takes seconds to import: it brings in spaCy, and transformers and torch if present.
    try:
        import tldextract
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as known
    except ImportError as error:
        raise EnvironmentFailure(
            f"The separation policy asks for personal data, and its detector is missing ({error}).",
            "Run: pip install 'llm-unlearn[pii]', or drop the rules with `personal_data`.",
        ) from error

    domains = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    class OfflineEmailRecognizer(known.EmailRecognizer):  # type: ignore[misc]
        """Presidio's own fetches the list of top-level domains at first use."""

        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).fqdn)

    born = Pattern("after a word of birth", _BIRTH, 0.6)
    return (
        ("credit_card", known.CreditCardRecognizer()),
        ("crypto_wallet", known.CryptoRecognizer()),
        ("date_of_birth", PatternRecognizer("DATE_OF_BIRTH", patterns=[born])),
        ("email", OfflineEmailRecognizer()),
        ("iban", known.IbanRecognizer()),
        ("ip_address", known.IpRecognizer()),
        ("phone", known.PhoneRecognizer()),
        ("us_ssn", known.UsSsnRecognizer()),
    )
