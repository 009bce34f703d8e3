"""How fast the store is and what deletion leaves behind, beside other stores, in one run.

It measures this machine at this moment: compare the lines of one run, not runs.
"""

from llm_unlearn.retrieval.bench.choose import choose
from llm_unlearn.retrieval.bench.measure import Row, run
from llm_unlearn.retrieval.bench.table import tables
from llm_unlearn.retrieval.bench.texts import embed_texts, read_texts
from llm_unlearn.retrieval.bench.vectors import load_vectors, synthetic, thinned

__all__ = [
    "Row",
    "choose",
    "embed_texts",
    "load_vectors",
    "read_texts",
    "run",
    "synthetic",
    "tables",
    "thinned",
]
