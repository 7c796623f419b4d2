"""Token buckets against a clock that is set by hand."""

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.service.rate import MAX_CALLERS, RateLimit


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_burst_and_then_the_rate():
    clock = Clock()
    limit = RateLimit(5, clock)
    assert [limit.take("a") for _ in range(10)] == [0.0] * 10
    assert 0 < limit.take("a") <= 0.2
    assert limit.take("b") == 0.0  # each has a bucket of their own
    clock.now += 0.2
    assert limit.take("a") == 0.0
    assert limit.take("a") > 0


def test_no_limit():
    limit = RateLimit(0)
    assert all(limit.take("a") == 0 for _ in range(1000))


@given(
    rate=st.sampled_from([0.5, 1, 3, 20]),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 16)), min_size=1, max_size=80),
)
@settings(max_examples=80, deadline=None)
def test_in_the_long_run_no_more_than_the_rate(rate, steps):
    clock = Clock()
    limit = RateLimit(rate, clock)
    taken = dearest = 0
    for pause, cost in steps:
        clock.now += pause
        wait = limit.take("a")
        if not wait:
            limit.charge("a", cost - 1)
            taken += cost
            dearest = max(dearest, cost)
        else:
            clock.now += wait + 1e-9
            assert limit.take("a") == 0.0, "the wait that was told is enough"
            taken += 1
    assert taken <= max(1.0, 2 * rate) + rate * (clock.now - 100.0) + dearest + 1e-6


def test_memory_is_bounded():
    clock = Clock()
    limit = RateLimit(1, clock)
    for number in range(MAX_CALLERS * 2):
        clock.now += 0.01
        limit.take(str(number))
    assert len(limit._buckets) <= MAX_CALLERS + 1
