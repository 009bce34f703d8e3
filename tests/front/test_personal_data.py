"""What the detector finds, what it leaves, and that it needs neither a model nor the network."""

from __future__ import annotations

import socket
import time
from typing import get_args

import pytest

from llm_unlearn import personal_data
from llm_unlearn.personal_data import OVERLAP, WINDOW, detect
from llm_unlearn.separation import Kind


@pytest.fixture(scope="module", autouse=True)
def _no_network() -> None:
    """Loaded once with every way out closed: a recogniser that needs the network fails here."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        personal_data.require()
        assert detect("x@example.co.uk") == {"email"}


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Write to ann.lee+news@example.co.uk, please.", {"email"}),
        ("Call +44 20 7946 0958 after six.", {"phone"}),
        ("Her number is (212) 555-2368.", {"phone"}),
        ("Pay to DE89 3704 0044 0532 0130 00.", {"iban"}),
        ("The card 4111 1111 1111 1111 was declined.", {"credit_card"}),
        ("SSN 536-22-8726 on the form.", {"us_ssn"}),
        ("Logged from 192.0.2.17 at noon.", {"ip_address"}),
        ("Logged from 2001:db8::8a2e:370:7334 at noon.", {"ip_address"}),
        ("Send to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa now.", {"crypto_wallet"}),
        ("Ann Lee was born on 12 March 1961 in Leeds.", {"date_of_birth"}),
        ("Ann Lee, born in Leeds on the 3rd of May 1961, sings.", {"date_of_birth"}),
        ("Date of birth: 1961-03-12", {"date_of_birth"}),
        ("DOB 03/12/61", {"date_of_birth"}),
        ("She was born March 12, 1961.", {"date_of_birth"}),
        ("a@b.com, DOB 03/12/1961", {"email", "date_of_birth"}),
    ],
)
def test_it_finds(text: str, kinds: set[str]) -> None:
    assert detect(text) == kinds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The full moon rose over the mill in 1984, on page 123 of 456.",
        "Pay to DE89 3704 0044 0532 0130 01.",  # the checksum does not hold
        "The card 4111 1111 1111 1112 was declined.",  # nor does this one
        "Mail @home and x@y are no addresses.",
        "The battle was on 12 March 1461.",
        "A star was born. On 12 March 1961 it rained.",
        "The idea was born in 1961.",
        "ISBN 978-3-16-148410-0",
        "Section 12.4.1 of version 3.11",
    ],
)
def test_it_leaves(text: str) -> None:
    assert detect(text) == frozenset()


def test_every_kind_of_the_policy_has_a_recogniser() -> None:
    assert [kind for kind, _ in personal_data._recognisers()] == sorted(get_args(Kind))


@pytest.mark.parametrize("at", [0, WINDOW - 200, WINDOW - 5, WINDOW - OVERLAP, 3 * WINDOW, 20_000])
def test_it_finds_across_the_edges_of_its_windows(at: int) -> None:
    assert detect("x " * (at // 2) + " a" * (at % 2) + " born 12 March 1961 " + "y " * 900) == {
        "date_of_birth"
    }
    assert detect("x " * (at // 2) + "mail ann@example.org " + "y " * 900) == {"email"}


@pytest.mark.parametrize("unit", ["a", "a.", "1", "0-", ":", "a@", "born "])
def test_no_text_is_slow_enough_to_be_skipped(unit: str) -> None:
    """Presidio gives up a pattern after 60 seconds and reports nothing found."""
    text = unit * (50_000 // len(unit))
    start = time.process_time()
    detect(text + " ann@example.org")
    assert time.process_time() - start < 10
    assert "email" in detect(text + " ann@example.org")


def test_a_year_is_no_phone_number() -> None:
    """1640 is a valid subscriber number somewhere, and a year everywhere else."""
    assert detect("The bridge was built in 1640.") == frozenset()
    assert "phone" in detect("Ring her at +1 202 555 0143.")
