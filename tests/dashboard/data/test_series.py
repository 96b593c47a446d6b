import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.data.series import peak_error, pit_shares, predicted_peaks
from store.http_requests import FinishedPoint, LoadPoint


@given(st.lists(st.none() | st.floats(0.0, 1.0), max_size=80), st.integers(1, 20))
def test_pit_shares_sum_to_one(values: list[float | None], bins: int) -> None:
    """Every outcome with a PIT is in exactly one bin, the ends included."""
    shares, outcomes = pit_shares([FinishedPoint(request_id="a", time_s=0.0, pit=value) for value in values], bins)
    assert outcomes == sum(value is not None for value in values)
    assert sum(shares) == pytest.approx(1.0 if outcomes else 0.0)


def test_a_peak_is_held_against_its_prediction() -> None:
    """What is used and reserved now is compared with the highest use within the horizon; never above the capacity."""
    rows = [
        LoadPoint(second + 1.0, used_blocks=10 * second, peak_blocks=10 * second, reserved_blocks=20, total_blocks=1000)
        for second in range(1, 11)
    ]
    assert predicted_peaks(rows, 2)[:4] == [None, None, 30.0, 40.0]
    assert [point.peak_blocks for point in rows[2:4]] == [30.0, 40.0]
    assert peak_error(rows, 2) == pytest.approx(0.0)
    assert peak_error(rows[:1], 2) is None
    assert LoadPoint(1.0, used_blocks=90, reserved_blocks=50, total_blocks=100).predicted_peak_blocks == 100
