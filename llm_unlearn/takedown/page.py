"""A receipt as one printable HTML page, in plain words, for the person who asked.

Guarantees: the page is made from a receipt that has been verified, says nothing that the receipt
does not say, and needs nothing from elsewhere (no script, font, image or link is loaded). Every
value is escaped. The same receipt gives the same page.

Does not guarantee: anything to someone who has only the page. It says how to check the receipt.
"""

from __future__ import annotations

from typing import Final

from llm_unlearn.pages import templates
from llm_unlearn.takedown.receipt import ByFate
from llm_unlearn.takedown.verify import Verified

KINDS: Final = {
    "dmca": "a copyright notice (DMCA)",
    "gdpr": "a request for erasure (GDPR)",
    "internal": "the operator's own request",
}


def receipt_page(verified: Verified) -> str:
    """The page of a verified receipt: a whole HTML document, UTF-8."""
    receipt = verified.receipt
    closure = receipt.closure
    found = (
        ("named by the request", closure.requested),
        ("the same text", closure.exact),
        ("the same text with changes", closure.near_duplicate),
        ("quoting it at length", closure.quotation),
        ("perhaps a paraphrase (shown to people)", closure.flagged),
    )
    return (
        templates("llm_unlearn.takedown")
        .get_template("page.html.j2")
        .render(
            receipt=receipt,
            verified=verified,
            kind=KINDS[receipt.request.kind],
            found=found,
            deleted=_total(receipt.done.documents_deleted),
            named_elsewhere=_total(closure.mentions),
            retrained=any(shard.retrained for shard in receipt.done.shards),
            owed=[copy for copy in receipt.copies if copy.status == "owed"],
        )
    )


def _total(counts: ByFate) -> int:
    return counts.store + counts.corpus
