"""Prompt clusters in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dashboard.data.prompts_archive import Cluster, Likeness
from dashboard.text.words import plain
from store.formatting import count, percent

SHORT, LONG = 64, 512
"""Output tokens below which an answer is called short, and from which it is called long."""


def short_name(cluster: Cluster) -> str:
    """Name a cluster by its typical prompt and answer, in tokens, and its tenant.

    >>> short_name(Cluster("m", 91, 9, 0, 40.0, [9, 20, 31, 50, 80, 99], None, 5.0, 0, None, 380.0, "acme", 0.9))
    '380 → 31, acme (#91)'
    """
    return _short(cluster.prompt_tokens, cluster.quantiles[2], cluster.tenant, cluster.cluster)


def names_by_number(likenesses: Sequence[Likeness]) -> dict[str, str]:
    """Short names of clusters by their numbers, without numbers that clusters of several models have.

    >>> like = Likeness("m", 91, 380.0, "acme", 0.9, 31.0)
    >>> names_by_number([like, Likeness("m", 2, 40.0, None, None, 9.0), Likeness("n", 2, 70.0, None, None, 5.0)])
    {'91': '380 → 31, acme (#91)'}
    """
    models = Counter(one.cluster for one in likenesses)
    return {
        str(one.cluster): _short(one.prompt_tokens, one.output_tokens, one.tenant, one.cluster)
        for one in likenesses
        if models[one.cluster] == 1
    }


def _short(prompt_tokens: float | None, output_tokens: float, tenant: str | None, number: int) -> str:
    return f"{count(prompt_tokens)} → {count(output_tokens)}{f', {tenant}' if tenant else ''} (#{number})"


def short_names(clusters: Sequence[Cluster]) -> list[str]:
    """Name clusters by `short_name`, with the model's beginning where there are several."""
    several = len({cluster.model for cluster in clusters}) > 1
    return [short_name(one) + (f", {one.model[:8]}" if several else "") for one in clusters]


def name(cluster: Cluster) -> str:
    """Say what the prompts of a cluster are like, and end with its number.

    >>> name(Cluster("m", 91, 9, 0, 40.0, [9, 20, 31, 50, 80, 99], None, 5.0, 0, None, 380.0, "acme", 0.9))
    'Short answers (~31 tokens) to prompts of ~380, 90% acme (#91)'
    """
    tokens = cluster.quantiles[2]
    size = "Short" if tokens < SHORT else "Long" if tokens >= LONG else "Medium"
    prompts = "" if cluster.prompt_tokens is None else f" to prompts of ~{count(cluster.prompt_tokens)}"
    tenant = f", {percent(cluster.tenant_share)} {cluster.tenant}" if cluster.tenant else ""
    return f"{size} answers (~{count(tokens)} tokens){prompts}{tenant} (#{cluster.cluster})"


def verdict(clusters: Sequence[Cluster]) -> str:
    """Say how different the answers of the clusters are, which is what the order lives by."""
    medians = sorted(clusters, key=lambda cluster: cluster.quantiles[2])
    if len(medians) < 2:
        return f"All prompts are alike: {plain(name(medians[0]))}."
    low, high = medians[0], medians[-1]
    return (
        f"**{count(len(clusters))} clusters** of prompts have answers. Half of the answers are shorter than "
        f"{count(low.quantiles[2])} tokens in the shortest cluster and than {count(high.quantiles[2])} in the longest: "
        "the more they differ, the more an order by predicted length brings."
    )
