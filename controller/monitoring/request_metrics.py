"""Metrics of single requests: latencies and lengths by engine, strict class, tenant and prompt cluster.

Labels that clients can choose freely are capped: the first values have series of their own, the rest are ``other``.
"""

from __future__ import annotations

from hashlib import blake2b

from prometheus_client import CollectorRegistry, Counter, Histogram

from controller.monitoring.request_tracker import TrackedRequest
from store.records import Finished

LATENCY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
TOKEN_SECONDS_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
COARSE_BUCKETS_S = (0.5, 1, 5, 10, 50, 100, 500)
PREDICT_BUCKETS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)
LENGTH_BUCKETS_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 65_536)

CLASSES = 16
TENANTS = 32
CLUSTERS = 64
LABEL_BYTES = 128
"""Longest label: with the numbers above and the engines' it bounds the page, whatever arrives."""
OTHER = "other"
NONE = "none"
"""Label of requests without a tenant or cluster."""


class CappedLabel:
    """Gives the first ``limit`` values their own labels and all later ones the label ``other``.

    >>> label = CappedLabel(2)
    >>> [label.of(value) for value in ("a", "b", "c", "a")]
    ['a', 'b', 'other', 'a']
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        """The label of a value."""
        label = bounded_label(value)
        if len(self._known) < self._limit:
            self._known.add(label)
        return label if label in self._known else OTHER


def bounded_label(value: str) -> str:
    """A label of at most `LABEL_BYTES` in UTF-8; a longer one is cut and ends in a hash of the whole.

    >>> bounded_label("tenant"), bounded_label(1_000_000 * "x")[100:]
    ('tenant', 'xxxxxxxxxxx~a54361f3904a047b')
    """
    try:
        if len(value) <= LABEL_BYTES and len(value.encode()) <= LABEL_BYTES:
            return value
    except UnicodeEncodeError:
        pass  # A lone surrogate has no place on the page.
    mark = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    head = value[:LABEL_BYTES].encode("utf-8", "replace")[: LABEL_BYTES - len(mark) - 1]
    return f"{head.decode('utf-8', 'ignore')}~{mark}"


class RequestMetrics:
    """Counts every request that ended; for the control loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        engine = ("engine_id",)
        self.ttft_s = self._histogram("ttft_seconds", "Time to first token of finished requests.", engine)
        self.ttlt_s = self._histogram("ttlt_seconds", "Time to last token of finished requests.", engine)
        self.tpot_s = self._histogram(
            "tpot_seconds", "Time per output token after the first.", engine, TOKEN_SECONDS_BUCKETS_S
        )
        self.itl_s = self._histogram(
            "inter_token_seconds",
            "Longest and 99% quantile of the times between two output tokens of each finished request.",
            ("engine_id", "statistic"),
            TOKEN_SECONDS_BUCKETS_S,
        )
        self.queue_s = self._histogram("queue_seconds", "Time in the queue before the first place in a step.", engine)
        self.prompt_s = self._histogram("prefill_seconds", "Time from the first place to the first token.", engine)
        self.decode_s = self._histogram("decode_seconds", "Time from the first to the last token.", engine)
        self.prompt_tokens = self._histogram(
            "prompt_tokens", "Prompt tokens of finished requests.", engine, LENGTH_BUCKETS_TOKENS
        )
        self.output_tokens = self._histogram(
            "output_tokens", "Output tokens of finished requests.", engine, LENGTH_BUCKETS_TOKENS
        )
        self.class_ttft_s = self._histogram("class_ttft_seconds", "Time to first token by strict class.", ("priority",))
        self.class_ttlt_s = self._histogram("class_ttlt_seconds", "Time to last token by strict class.", ("priority",))
        self.tenant_ttlt_s = self._histogram(
            "tenant_ttlt_seconds", "Time to last token by tenant.", ("tenant",), COARSE_BUCKETS_S
        )
        self.tenant_tokens = Counter(
            "sagesched_tenant_generated_tokens_total",
            "Output tokens of finished requests by tenant.",
            ("tenant",),
            registry=registry,
        )
        self.cluster_ttlt_s = self._histogram(
            "cluster_ttlt_seconds", "Time to last token by prompt cluster.", ("model", "cluster"), COARSE_BUCKETS_S
        )
        self.predict_s = self._histogram("predict_seconds", "Time that a prediction took.", (), PREDICT_BUCKETS_S)
        self._children: dict[tuple[Histogram, tuple[str, ...]], Histogram] = {}
        self._classes, self._tenants, self._clusters = CappedLabel(CLASSES), CappedLabel(TENANTS), CappedLabel(CLUSTERS)

    def count(self, engine_id: str, fact: Finished, request: TrackedRequest | None, model: str | None) -> None:
        """Count a completed request; ``request`` holds what else was recorded about it."""
        ttlt_s = max(0.0, fact.time_s - fact.arrival_s)
        self._count_by_engine(engine_id, fact, ttlt_s)
        arrived = request.arrived if request else None
        priority = self._classes.of(str(arrived.priority)) if arrived else NONE
        self._of(self.class_ttlt_s, priority).observe(ttlt_s)
        if fact.first_token_s is not None:
            self._of(self.class_ttft_s, priority).observe(max(0.0, fact.first_token_s - fact.arrival_s))
        tenant = self._tenants.of(arrived.tenant) if arrived and arrived.tenant else NONE
        self._of(self.tenant_ttlt_s, tenant).observe(ttlt_s)
        self.tenant_tokens.labels(tenant).inc(fact.output_tokens)
        self._of(self.cluster_ttlt_s, *self._cluster(request, model)).observe(ttlt_s)

    def _count_by_engine(self, engine_id: str, fact: Finished, ttlt_s: float) -> None:
        of = self._of
        of(self.ttlt_s, engine_id).observe(ttlt_s)
        of(self.prompt_tokens, engine_id).observe(fact.prompt_tokens)
        of(self.output_tokens, engine_id).observe(fact.output_tokens)
        if fact.scheduled_s is not None:
            of(self.queue_s, engine_id).observe(max(0.0, fact.scheduled_s - fact.arrival_s))
        if fact.first_token_s is None:
            return
        of(self.ttft_s, engine_id).observe(max(0.0, fact.first_token_s - fact.arrival_s))
        decode_s = max(0.0, fact.time_s - fact.first_token_s)
        of(self.decode_s, engine_id).observe(decode_s)
        if fact.scheduled_s is not None:
            of(self.prompt_s, engine_id).observe(max(0.0, fact.first_token_s - fact.scheduled_s))
        for statistic, value_s in (("p99", fact.itl_p99_s), ("max", fact.itl_max_s)):
            if value_s is not None:
                of(self.itl_s, engine_id, statistic).observe(value_s)
        if fact.output_tokens > 1:
            of(self.tpot_s, engine_id).observe(decode_s / (fact.output_tokens - 1))

    def _of(self, histogram: Histogram, *labels: str) -> Histogram:
        """The histogram with these labels, looked up once because each request updates a dozen."""
        found = self._children.get((histogram, labels))
        if found is None:
            found = self._children[histogram, labels] = histogram.labels(*labels)
        return found

    def _cluster(self, request: TrackedRequest | None, model: str | None) -> tuple[str, str]:
        """Model and cluster, capped together."""
        cluster = request.prediction.cluster if request and request.prediction else None
        if model is None or cluster is None:
            return bounded_label(model or NONE), NONE
        return (
            (bounded_label(model), str(cluster))
            if self._clusters.of(f"{model}\n{cluster}") != OTHER
            else (OTHER, OTHER)
        )

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = LATENCY_BUCKETS_S
    ) -> Histogram:
        return Histogram(f"sagesched_{name}", text, labels, buckets=buckets, registry=self._registry)
