from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.core.step_time import StepModel, StepSample, fit_step_model
from controller.policy.policies import OVERTAKING, Schedule, policy_named
from controller.replay.gain import FEWEST_REQUESTS, estimate_gain
from controller.replay.recorded_run import EngineSizes, RecordedRequest, RecordedRun, distribution_from_quantiles
from store.http_api import Gain
from store.records import EngineRules, Mode

SIZES = EngineSizes(kv_blocks=400, block_size_tokens=16, max_num_seqs=64, token_budget=2048, max_model_len_tokens=4096)
TRUTH = StepModel(base_s=0.02, prefill_token_s=1e-4, decode_seq_s=3e-5, kv_token_s=2e-7)


def samples(count: int, seed: int = 0) -> list[StepSample]:
    """Snapshots of an engine whose steps take what `TRUTH` says."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        steps = int(generator.integers(1, 8))
        prefill, decode, kv = (int(generator.integers(0, high)) for high in (3000, 60 * steps, 20_000 * steps))
        step_s = (
            steps * TRUTH.base_s + prefill * TRUTH.prefill_token_s + decode * TRUTH.decode_seq_s + kv * TRUTH.kv_token_s
        )
        made.append(
            StepSample(steps=steps, step_s=step_s, prefill_tokens=prefill, decode_tokens=decode, kv_tokens_read=kv)
        )
    return made


def requests(count: int, rate_rps: float, predicted: Callable[[int], int], seed: int = 1) -> list[RecordedRequest]:
    """Answers that are short or long, with predicted medians by ``predicted``."""
    generator = np.random.default_rng(seed)
    arrivals_s = np.cumsum(generator.exponential(1.0 / rate_rps, count))
    made = []
    for number, arrival_s in enumerate(arrivals_s.tolist()):
        output_tokens = int(generator.choice([20, 600]))
        median = predicted(output_tokens)
        quantiles = tuple((q, max(1, round(median * factor))) for q, factor in ((0.1, 0.8), (0.5, 1.0), (0.9, 1.2)))
        made.append(
            RecordedRequest(
                request_id=str(number),
                arrival_s=1e9 + arrival_s,
                finished_s=1e9 + arrival_s + 7.0,
                prompt_tokens=200,
                output_tokens=output_tokens,
                max_tokens=1024,
                quantiles=quantiles,
            )
        )
    return made


def gain(finished: list[RecordedRequest], policy: str = "sage") -> Gain | None:
    """The comparison on a small engine."""
    return estimate_gain(past_run(finished), policy_named(policy))


def past_run(requests: list[RecordedRequest], mode: Mode = "on") -> RecordedRun:
    return RecordedRun(
        engine_id="e",
        session_id="s",
        model="m",
        sizes=SIZES,
        requests=tuple(requests),
        samples=tuple(samples(50)),
        modes={mode: 1.0},
    )


def test_the_step_model_finds_the_coefficients_that_made_the_snapshots() -> None:
    """Least squares over clean snapshots gives the truth back."""
    fitted = fit_step_model(samples(60))
    assert fitted.base_s == pytest.approx(TRUTH.base_s, rel=1e-6)
    assert fitted.prefill_token_s == pytest.approx(TRUTH.prefill_token_s, rel=1e-6)
    assert fitted.decode_seq_s == pytest.approx(TRUTH.decode_seq_s, rel=1e-6)
    assert fitted.kv_token_s == pytest.approx(TRUTH.kv_token_s, rel=1e-6)


@given(
    st.lists(
        st.builds(
            StepSample,
            steps=st.integers(0, 9),
            step_s=st.floats(0.0, 10.0),
            prefill_tokens=st.integers(0, 10_000),
            decode_tokens=st.integers(0, 1000),
            kv_tokens_read=st.integers(0, 10**6),
        ),
        max_size=60,
    )
)
def test_whatever_the_snapshots_say_the_model_is_usable(measured: list[StepSample]) -> None:
    """No coefficient is negative or no number, and a step always takes time."""
    fitted = fit_step_model(measured)
    assert fitted.base_s > 0.0
    for coefficient in (fitted.base_s, fitted.prefill_token_s, fitted.decode_seq_s, fitted.kv_token_s):
        assert np.isfinite(coefficient)
        assert coefficient >= 0.0


def test_an_idle_engine_s_constant_steps_give_the_base_alone() -> None:
    """Columns that never vary do not break the fit."""
    constant = [StepSample(steps=4, step_s=0.2, prefill_tokens=0, decode_tokens=0, kv_tokens_read=0)] * 40
    assert fit_step_model(constant).base_s == pytest.approx(0.05)


@given(st.lists(st.integers(1, 50_000), min_size=7, max_size=7), st.sampled_from([1, 64, 8192]))
def test_a_distribution_from_quantiles_keeps_them(tokens: list[int], max_tokens: int) -> None:
    """Each recorded quantile comes back within one bin of the grid, cut at max_tokens."""
    probabilities = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    quantiles = list(zip(probabilities, sorted(tokens), strict=True))
    predicted = distribution_from_quantiles(quantiles, max_tokens)
    for probability, expected in quantiles:
        assert predicted.quantile(probability - 1e-6) <= min(max_tokens, expected * 1.13 + 1)
        assert predicted.quantile(probability + 1e-6) >= min(max_tokens, expected / 1.13 - 1)


@pytest.mark.slow
def test_under_overload_good_predictions_show_a_gain() -> None:
    """Replaying short and long answers with true predictions, our order has a lower mean TTLT than FCFS."""
    result = gain(requests(300, rate_rps=12.0, predicted=lambda output_tokens: output_tokens))
    assert result is not None
    assert result.modelled.mean_ttlt_s < 0.8 * result.fcfs.mean_ttlt_s
    assert result.actual.mean_ttlt_s == pytest.approx(7.0)
    assert result.requests == 300


@pytest.mark.slow
def test_the_gain_is_not_made_by_hindsight() -> None:
    """Predictions that are upside down make our order no better than with true ones, and cost what they should."""
    true = gain(requests(300, rate_rps=12.0, predicted=lambda output_tokens: output_tokens))
    false = gain(requests(300, rate_rps=12.0, predicted=lambda output_tokens: 620 - output_tokens))
    assert true is not None
    assert false is not None
    assert false.fcfs == true.fcfs
    assert false.modelled.mean_ttlt_s > 1.2 * true.modelled.mean_ttlt_s


def test_without_a_queue_nothing_is_gained_or_lost() -> None:
    """At low load both orders serve everybody at once."""
    result = gain(requests(100, rate_rps=0.2, predicted=lambda output_tokens: output_tokens))
    assert result is not None
    assert result.modelled.mean_ttlt_s == pytest.approx(result.fcfs.mean_ttlt_s, rel=0.01)


def test_the_method_says_what_the_figures_are() -> None:
    """Whoever reads the comparison is told that it is a replay, of how many requests, under which policy."""
    result = gain(requests(40, rate_rps=2.0, predicted=lambda output_tokens: output_tokens), "sagesched-paper")
    assert result is not None
    assert "Replay, not measurement: 40 finished requests" in result.method
    assert "sagesched-paper" in result.method
    assert "20.0 ms" in result.method


def test_too_little_to_compare_is_no_comparison() -> None:
    """Few requests, or none with a prediction, give None instead of a figure."""
    finished = requests(FEWEST_REQUESTS - 1, rate_rps=2.0, predicted=lambda output_tokens: output_tokens)
    assert gain(finished) is None
    blind = [
        RecordedRequest(
            request_id=str(n), arrival_s=n, finished_s=n + 1, prompt_tokens=9, output_tokens=9, max_tokens=99
        )
        for n in range(50)
    ]
    assert gain(blind) is None


@pytest.mark.slow
def test_what_took_room_beside_them_is_replayed_and_not_counted() -> None:
    """Unfinished requests keep the others waiting, for as long as was to be expected of them, and have no figure."""
    finished = requests(200, rate_rps=6.0, predicted=lambda output_tokens: output_tokens)
    alone = gain(finished)
    beside = [
        replace(
            request,
            request_id=f"u{n}",
            finished_s=None,
            output_tokens=500,
            quantiles=((0.5, 600), (0.9, 800)),
            counted=False,
        )
        for n, request in enumerate(finished[::4])
    ]
    crowded = gain([*finished, *beside])
    assert alone is not None
    assert crowded is not None
    assert crowded.requests == alone.requests == 200
    assert crowded.fcfs.mean_ttlt_s > 1.05 * alone.fcfs.mean_ttlt_s
    assert "and 50 that were in the engine beside them" in crowded.method


def test_a_request_that_ended_while_one_looked_is_there_once() -> None:
    """The live picture may be older than the list of ends; the end is right."""
    finished = requests(60, rate_rps=6.0, predicted=lambda output_tokens: output_tokens)
    late = [
        replace(request, finished_s=None, output_tokens=1, counted=False, first_token_s=None)
        for request in finished[-5:]
    ]
    assert gain([*finished, *late]) == gain([*late, *finished]) == gain(finished)


@pytest.mark.slow
def test_the_replay_of_the_order_in_force_is_held_against_what_was_measured() -> None:
    """In shadow that is first come, first served; measured figures that it does not give again are called out."""
    finished = requests(200, rate_rps=12.0, predicted=lambda output_tokens: output_tokens)
    shadow = estimate_gain(past_run(finished, "shadow"), policy_named("sage"))
    on = estimate_gain(past_run(finished, "on"), policy_named("sage"))
    assert shadow is not None
    assert on is not None
    assert shadow.reproduction.mean_ttlt_error == pytest.approx(shadow.fcfs.mean_ttlt_s / 7.0 - 1.0)
    assert on.reproduction.mean_ttlt_error == pytest.approx(on.modelled.mean_ttlt_s / 7.0 - 1.0)
    assert on.actual.mean_ttlt_s == pytest.approx(7.0)
    assert (shadow.reproduction.mode, on.reproduction.mode) == ("shadow", "on")
    assert shadow.reproduction.poor
    assert shadow.ratio.low < shadow.ratio.mean < shadow.ratio.high
    assert shadow.ratio.mean == pytest.approx(shadow.modelled.mean_ttlt_s / shadow.fcfs.mean_ttlt_s)


def test_objectives_are_compared_on_the_same_requests() -> None:
    """The one in use is the policy's own replay; the mean's has no longer a mean than the tail's, with tuned boosts too."""
    finished = requests(120, 4.0, lambda tokens: tokens)
    policies = {name: policy_named("sage", schedule=Schedule(objective=name)) for name in OVERTAKING}
    for rules in (None, EngineRules(gate=None, boost_per_s=0.01)):
        found = estimate_gain(replace(past_run(finished), rules=rules), policies["balanced"], policies)
        assert found is not None
        by_name = {one.objective: one for one in found.objectives}
        assert [name for name, one in by_name.items() if one.in_use] == ["balanced"]
        assert by_name["balanced"].latency == found.modelled
        assert by_name["mean"].latency.mean_ttlt_s <= by_name["tail"].latency.mean_ttlt_s
        assert all(one.max_ttlt_s >= one.latency.p99_ttlt_s for one in found.objectives)
    alone = estimate_gain(past_run(finished), policies["balanced"])
    assert alone is not None
    assert alone.objectives == ()
