"""Documents that wait for a person: possible copies, fenced until somebody has looked at them.

Guarantees: a document is put under review in the transaction that fences it, and leaves review in the
one that frees it. What to do with it is decided by `takedown review`.
"""

from __future__ import annotations

from llm_unlearn.retrieval.marked import Marked

_REVIEWS = Marked("reviews")
add = _REVIEWS.add
close = _REVIEWS.remove
drop = _REVIEWS.drop
of = _REVIEWS.of
under_review = _REVIEWS.all
