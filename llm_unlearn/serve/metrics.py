"""Counts for Prometheus: of requests, answers and takedowns; no text, no names, no document."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "llm_unlearn_requests", "Requests.", ["route", "method", "status"], registry=own
        )
        self.seconds = Histogram(
            "llm_unlearn_request_seconds",
            "Seconds of a request.",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.first = Histogram(
            "llm_unlearn_first_token_seconds",
            "Seconds to the first word.",
            buckets=_SECONDS,
            registry=own,
        )
        self.answers = Counter(
            "llm_unlearn_answers",
            "Answers by origin and how they ended.",
            ["origin", "finish"],
            registry=own,
        )
        self.tokens = Counter("llm_unlearn_tokens", "Tokens read and made.", ["kind"], registry=own)
        self.redone = Counter(
            "llm_unlearn_answers_redone",
            "Answers begun anew because the workspace changed.",
            registry=own,
        )
        self.waiting = Gauge("llm_unlearn_answers_waiting", "Answers that wait.", registry=own)
        self.decoding = Gauge("llm_unlearn_answers_decoding", "Answers that decode.", registry=own)
        self.under_way = Gauge(
            "llm_unlearn_requests_under_way", "Requests under way.", registry=own
        )
        self.documents = Gauge(
            "llm_unlearn_documents",
            "Documents by fate, or by state if not live.",
            ["what"],
            registry=own,
        )
        self.takedowns = Gauge(
            "llm_unlearn_takedowns", "Takedowns by state.", ["state"], registry=own
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
