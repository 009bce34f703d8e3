"""The main job, end to end, on the packaged models: what `make demo` runs.

Separation, training, answering, two takedowns, and the proof that what is left is what would have
been there had the removed text never come. Every figure is measured in this run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import llm_unlearn
from llm_unlearn.config import Config, load_config
from llm_unlearn.demo.measure import (
    Asked,
    count,
    knowledge,
    leaks,
    load_questions,
    load_triggers,
    load_utility,
    plain_answers,
    utility_rates,
)
from llm_unlearn.demo.proof import prove
from llm_unlearn.demo.report import write_report
from llm_unlearn.demo.result import DemoResult, Leak, Removal
from llm_unlearn.demo.summary import print_summary
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.files import write_atomic
from llm_unlearn.opened import Models
from llm_unlearn.takedown.plan import Plan
from llm_unlearn.workspace import Workspace

STORED, LEARNED = "ilse-brandvold", "orsolya-tarn"
GROUPS = ("staff", "legal")
"""Subjects taken down: one from the store, one from a shard."""
