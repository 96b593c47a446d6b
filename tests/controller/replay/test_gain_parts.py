from msgspec import structs

from controller.replay.gain_parts import FEWEST_IN_PART, parts_of, per_request_of, tax_of
from controller.replay.recorded_run import RecordedRequest
from engine_adapter.virtual_time.engine import CompletedRequest


def past(number: int, output_tokens: int) -> RecordedRequest:
    return RecordedRequest(
        request_id=str(number),
        arrival_s=0.0,
        prompt_tokens=10,
        output_tokens=output_tokens,
        max_tokens=5000,
        priority=number % 2,
        finished_s=1.0,
    )


def test_parts_ascend_by_their_first_number() -> None:
    """The shortest answers come first, and a class below zero before that of zero."""
    lengths = [5, 20, 100, 300, 2000, 5000]
    many = [(n, length) for n, length in enumerate(length for length in lengths for _ in range(2 * FEWEST_IN_PART))]
    requests = {str(n): structs.replace(past(n, length), priority=(n % 2) - 1) for n, length in many}
    lives = [request.completed() for request in requests.values()]
    found = parts_of(requests, lives, lives)
    assert [part.name for part in found if part.by == "class"] == ["-1", "0"]
    assert [part.name for part in found if part.by == "length"] == [
        "under 16",
        "16 to 63",
        "64 to 255",
        "256 to 1,023",
        "1,024 to 4,095",
        "4,096 and more",
    ]


def test_parts_tell_who_gains_and_who_loses() -> None:
    """Short answers at half the time, long ones at twice; parts that are too small are not shown."""
    clusters = dict.fromkeys(range(FEWEST_IN_PART), 7) | {50: 8}
    requests = {str(n): structs.replace(past(n, 20 if n < 60 else 2000), cluster=clusters.get(n)) for n in range(100)}
    requests["odd"] = past(100, 10)
    fcfs = [structs.replace(request, finished_s=10.0).completed() for request in requests.values()]
    ours = [
        structs.replace(request, finished_s=5.0 if request.output_tokens < 100 else 20.0).completed()
        for request in requests.values()
    ]
    found = {(part.by, part.name): part for part in parts_of(requests, fcfs, ours)}
    assert set(found) == {
        ("class", "0"),
        ("class", "1"),
        ("length", "16 to 63"),
        ("length", "1,024 to 4,095"),
        ("cluster", "7"),
    }
    assert found["length", "16 to 63"].ratio.mean == 0.5
    assert found["length", "1,024 to 4,095"].ratio.mean == 2.0
    assert found["cluster", "7"].requests == FEWEST_IN_PART
    each = per_request_of(fcfs, ours)
    assert (each.faster, each.slower) == (61 / 101, 40 / 101)
    assert (each.fcfs_max_ttlt_s, each.max_ttlt_s) == (10.0, 20.0)


def test_the_tax_is_what_was_computed_again_of_all_that_was_computed() -> None:
    """Prompt, answer and what was computed again."""
    life = CompletedRequest(
        request_id="a",
        arrival_s=0.0,
        scheduled_s=0.0,
        first_token_s=1.0,
        finished_s=2.0,
        prompt_tokens=60,
        output_tokens=20,
        reason="stop",
        preemptions=2,
        recomputed_tokens=20,
    )
    tax = tax_of([life, life])
    assert (tax.preemptions, tax.recomputed_tokens, tax.share) == (4, 40, 0.2)
    assert tax_of([]).share == 0.0
