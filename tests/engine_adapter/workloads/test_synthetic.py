from __future__ import annotations

from collections import defaultdict
from itertools import islice

import numpy as np
import pytest

from engine_adapter.workloads.rows import Workload, WorkloadRow
from engine_adapter.workloads.synthetic import MAX_RESPONSE_TOKENS, SyntheticOptions, synthetic_stream
from engine_adapter.workloads.synthetic_families import FAMILIES
from engine_adapter.workloads.token_ids import count_tokens
from store.errors import BadInputError, WorkloadError


def synthetic_workload(requests: int, seed: int, options: SyntheticOptions | None = None) -> Workload:
    return Workload(name="synthetic", rows=tuple(islice(synthetic_stream(seed, options), requests)))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return synthetic_workload(4000, seed=11)


def by_task(rows: tuple[WorkloadRow, ...]) -> dict[str, list[int]]:
    lengths: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        lengths[row.task].append(row.response_len_tokens)
    return lengths


@pytest.mark.slow
def test_the_same_seed_gives_the_same_requests_and_the_stream_goes_on(workload: Workload) -> None:
    """A workload is the beginning of its seed's stream; another seed gives another one."""
    assert tuple(islice(synthetic_stream(11), 300)) == workload.rows[:300]
    assert synthetic_workload(300, seed=12).rows != workload.rows[:300]


def test_a_dozen_families_and_more_come_in_their_shares(workload: Workload) -> None:
    """Each family's share of the requests is its weight's, within 2 points of a hundred."""
    lengths = by_task(workload.rows)
    weights = sum(family.weight for family in FAMILIES)
    assert len(lengths) >= 12
    for family in FAMILIES:
        assert len(lengths[family.name]) / len(workload) == pytest.approx(family.weight / weights, abs=0.02)


def test_prompts_are_finished_english_of_the_stated_length(workload: Workload) -> None:
    """No slot is left open, the length is the text's, and few prompts come twice."""
    assert not any("{" in (row.prompt or "{") or "}" in (row.prompt or "") for row in workload.rows)
    assert all(row.prompt_len_tokens == count_tokens(row.prompt or "") for row in workload.rows)
    assert len({row.prompt for row in workload.rows}) > 0.8 * len(workload)


def test_prompts_of_a_family_begin_alike(workload: Workload) -> None:
    """As with an application's system prompt, so that prefix caching has something to find."""
    for family in FAMILIES:
        prompts = [row.prompt or "" for row in workload.rows if row.task == family.name]
        assert all(prompt.startswith(family.system) for prompt in prompts)


def test_answers_are_heavy_tailed_and_differ_by_family(workload: Workload) -> None:
    """One answer in a hundred has more than five mean lengths, medians differ a hundredfold, none passes the cap."""
    lengths = np.array([row.response_len_tokens for row in workload.rows])
    medians = {task: np.median(drawn) for task, drawn in by_task(workload.rows).items()}
    assert np.percentile(lengths, 99) > 5 * lengths.mean()
    assert max(medians.values()) > 100 * min(medians.values())
    assert lengths.min() >= 1
    assert lengths.max() <= MAX_RESPONSE_TOKENS


def test_the_family_explains_much_of_the_length_and_the_wording_some_of_the_rest(workload: Workload) -> None:
    """R² of the logarithm by family is above a half; within stories those asked to be long are longer than poems."""
    tasks = by_task(workload.rows)
    logs = {task: np.log(drawn) for task, drawn in tasks.items()}
    whole = np.concatenate(list(logs.values()))
    within = sum(((log - log.mean()) ** 2).sum() for log in logs.values())
    assert 0.5 < 1 - within / ((whole - whole.mean()) ** 2).sum() < 0.9
    stories = [row for row in workload.rows if row.task == "story"]
    chapters = [row.response_len_tokens for row in stories if "long chapter" in (row.prompt or "")]
    poems = [row.response_len_tokens for row in stories if "poem" in (row.prompt or "")]
    assert np.median(chapters) > 4 * np.median(poems)


@pytest.mark.slow
def test_an_uninformative_workload_says_nothing_about_lengths_and_has_the_same_ones_over_all() -> None:
    """The family explains nothing any more, while the lengths over all families are as before."""
    blind = synthetic_workload(4000, seed=11, options=SyntheticOptions(informative=False))
    logs = {task: np.log(drawn) for task, drawn in by_task(blind.rows).items()}
    whole = np.concatenate(list(logs.values()))
    within = sum(((log - log.mean()) ** 2).sum() for log in logs.values())
    assert 1 - within / ((whole - whole.mean()) ** 2).sum() < 0.02
    seen = np.log([row.response_len_tokens for row in synthetic_workload(4000, seed=11).rows])
    assert whole.mean() == pytest.approx(seen.mean(), abs=0.15)


@pytest.mark.slow
def test_a_drift_changes_the_lengths_from_its_request_on_and_not_before() -> None:
    """Up to the drift nothing differs; after it chat is twice as long, stories are shorter, labels stay."""
    still, drifting = (
        synthetic_workload(6000, seed=2, options=SyntheticOptions(drift_at=at)).rows for at in (None, 3000)
    )
    assert still[:3000] == drifting[:3000]
    assert [row.prompt for row in still] == [row.prompt for row in drifting]
    before, after = by_task(still[3000:]), by_task(drifting[3000:])
    ratio = {task: np.median(after[task]) / np.median(before[task]) for task in before}
    assert ratio["chat"] == pytest.approx(2.0, rel=0.05)
    assert ratio["story"] == pytest.approx(0.6, rel=0.05)
    assert ratio["classification"] == 1.0


def test_limits_vary_and_seldom_cut_an_answer(workload: Workload) -> None:
    """Clients set at least six different limits; between 0.2 and 5% of the answers would go on beyond theirs."""
    assert len({row.max_tokens for row in workload.rows}) >= 6
    cut = np.mean([row.response_len_tokens > (row.max_tokens or 0) for row in workload.rows])
    assert 0.002 < cut < 0.05


def test_tenants_and_urgent_requests_come_in_their_shares() -> None:
    """Of three tenants the first has half of the traffic; one request in ten is urgent."""
    rows = synthetic_workload(3000, seed=4, options=SyntheticOptions(tenants=3, urgent_share=0.1)).rows
    assert {row.client for row in rows} == {"tenant-1", "tenant-2", "tenant-3"}
    assert np.mean([row.client == "tenant-1" for row in rows]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([row.priority == -1 for row in rows]) == pytest.approx(0.1, abs=0.02)
    assert {row.priority for row in rows} == {0, -1}


def test_senseless_options_are_refused() -> None:
    """Each by name and value; a workload of no requests as well."""
    with pytest.raises(BadInputError, match="urgent_share is 2"):
        SyntheticOptions(urgent_share=2)
    with pytest.raises(BadInputError, match="tenants is -1"):
        SyntheticOptions(tenants=-1)
    with pytest.raises(WorkloadError, match="no rows"):
        synthetic_workload(0, seed=1)
