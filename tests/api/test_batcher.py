"""The batcher by itself: turns, budgets, room, errors and cancelled work, with an encoder that names its texts."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.http.error_responses import ApiError
from api.inference.batcher import Batcher
from api.inference.length_window import window
from api.inference.request_queue import LANES, PATIENCE, Lanes, QueuedRequest
from embedserve.batching import token_batches
from embedserve.errors import DeviceError, OverloadedError
from tests.api.conftest import FakeEncoder, text_vector, wait_until

WORDS = st.text(alphabet="abcdefgh", min_size=1, max_size=40)
REQUESTS = st.lists(
    st.tuples(st.lists(WORDS, min_size=1, max_size=8), st.sampled_from(["query", "document", "bulk"])),
    min_size=1,
    max_size=12,
)


class Held:
    """A batcher that computes nothing until it is let go, so that everything waits together."""

    def __init__(self, *, budget=64, workers=1, limit=10**6, observe=None):
        self.encoder = FakeEncoder()
        self.encoder.batch_tokens, self.encoder.workers = budget, workers
        self.batcher = Batcher(self.encoder, limit=limit, observe=observe)
        self.submit(["wait"], "urgent")
        assert self.encoder.waiting.wait(10)

    def submit(self, texts, priority="document", task="document", **more):
        return self.batcher.submit(self.encoder.tokenize(texts, task), priority, **more)

    @property
    def calls(self):
        return self.encoder.calls[1:]

    def go(self):
        self.encoder.gate.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go()
        self.batcher.close()


def batches_filled(lengths, budget):
    """Return how many batches rows fill, longest first."""
    left, count = np.sort(lengths)[::-1], 0
    while len(left):
        left, count = left[max(1, budget // int(left[0])) :], count + 1
    return count


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, budget=st.integers(8, 200), workers=st.integers(1, 3))
def test_everyone_gets_the_own_texts_in_order_and_no_batch_breaks_its_budget(requests, budget, workers):
    reports = []
    with Held(budget=budget, workers=workers, observe=reports.append) as held:
        answers = [held.submit(texts, priority) for texts, priority in requests]
        held.go()
        for (texts, _), answer in zip(requests, answers, strict=True):
            found = answer.result(10).encoded
            np.testing.assert_array_equal(found.dense.vectors, [text_vector(text) for text in texts])
            assert found.tokens.tolist() == [len(text) for text in texts]
        assert held.batcher.pending == 0
    for call, report in zip(held.calls, reports[1:], strict=True):
        lengths = np.array([len(text) for text in call])
        batches = list(token_batches(lengths, budget))
        assert batches_filled(lengths, budget) <= workers
        assert all(len(part) * lengths[part].max() <= budget or len(part) == 1 for part in batches)
        assert (report.texts, report.tokens) == (len(call), lengths.sum())
        assert report.padded_tokens == sum(len(part) * lengths[part].max() for part in batches)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=25, unique=True),
    place=st.integers(0, 24),
    budget=st.integers(1, 300),
)
def test_a_window_holds_its_row_fits_and_has_no_better_one(lengths, place, budget):
    lengths, first = np.array(lengths), place % len(lengths)
    taken = window(lengths, first, budget)
    assert first in taken
    assert len(set(taken.tolist())) == len(taken)
    assert len(taken) == 1 or len(taken) * lengths[taken].max() <= budget
    by_length = np.sort(lengths)[::-1]
    best = max(
        by_length[start:stop].sum()
        for start in range(len(lengths))
        for stop in range(start + 1, len(lengths) + 1)
        if by_length[start] >= lengths[first] >= by_length[stop - 1]
        and (stop == start + 1 or (stop - start) * by_length[start] <= budget)
    )
    assert lengths[taken].sum() == best


def test_rows_of_like_length_go_together():
    with Held(budget=40) as held:
        answers = [held.submit([letter * size]) for letter, size in zip("abcdef", (10, 2, 9, 2, 10, 2), strict=True)]
        held.go()
        for answer in answers:
            answer.result(10)
    assert [sorted(map(len, call)) for call in held.calls] == [[2, 9, 10, 10], [2, 2]]


def test_queries_go_before_documents_before_bulk():
    with Held(budget=4) as held:
        for name in ("bulk", "document", "query"):
            for number in range(3):
                held.submit([f"{name[0]}{number:03}"], name)
        held.go()
    assert [call[0][0] for call in held.calls] == list("qqqdddbbb")


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=3, max_size=3))
def test_no_lane_starves(counts):
    names = ("query", "document", "bulk")
    with Held(budget=4) as held:
        for name, count in zip(names, counts, strict=True):
            for number in range(count):
                held.submit([f"{name[0]}{number:03}"], name)
        held.go()
    order = [call[0][0] for call in held.calls]
    assert len(order) == sum(counts)
    for name in ("document", "bulk"):
        places = [place for place, letter in enumerate(order) if letter == name[0]]
        if places:
            gaps = np.diff([-1, *places])
            assert gaps.max() <= PATIENCE[name] + 2  # the other lane that waited too long may go first


def test_within_a_lane_the_oldest_goes_first_and_long_requests_take_turns():
    with Held(budget=4) as held:
        held.submit(["a001", "a002", "a003"])
        held.submit(["b001", "b002", "b003"])
        held.submit(["c001"])
        held.go()
    assert [call[0][0] for call in held.calls] == list("abcabab")


def test_queries_and_documents_are_never_in_one_batch():
    with Held(budget=1000) as held:
        for task in ("query", "document", "query", "document"):
            held.submit([task], "query", task=task)
        held.go()
    assert [sorted(call) for call in held.calls] == [["query", "query"], ["document", "document"]]


def test_a_batch_that_fails_is_tried_caller_by_caller():
    with Held(budget=1000) as held:
        good, bad, other = held.submit(["good"]), held.submit(["fine", "boom"]), held.submit(["other"])
        held.go()
        assert good.result(10).encoded.tokens.tolist() == [4]
        assert other.result(10).encoded.tokens.tolist() == [5]
        with pytest.raises(RuntimeError, match="boom"):
            bad.result(10)
        assert held.batcher.pending == 0


def test_a_failed_request_takes_what_waits_of_it_along():
    with Held(budget=8) as held:
        bad = held.submit(["boom" * 2, *(["text"] * 9)])
        held.go()
        with pytest.raises(RuntimeError, match="boom"):
            bad.result(10)
        assert wait_until(lambda: held.batcher.pending == 0)
    assert len(held.calls) == 1


@settings(max_examples=25, deadline=None)
@given(requests=REQUESTS, leave=st.lists(st.booleans(), min_size=12, max_size=12))
def test_cancelled_work_leaves_the_queue(requests, leave):
    with Held(budget=16) as held:
        answers = [held.submit(texts, priority) for texts, priority in requests]
        for answer, leaves in zip(answers, leave, strict=False):
            if leaves:
                assert answer.cancel()
        kept = [texts for (texts, _), leaves in zip(requests, leave, strict=False) if not leaves]
        assert held.batcher.pending == len("wait") + sum(len(text) for texts in kept for text in texts)
        held.go()
    assert sorted(text for call in held.calls for text in call) == sorted(text for texts in kept for text in texts)


def test_the_queue_is_bounded_in_tokens_and_the_refusal_says_when_there_is_room():
    with Held(limit=20) as held:
        held.submit(["x" * 16])
        with pytest.raises(OverloadedError, match=r"20 tokens are waiting and 1 more would pass the limit of 20"):
            held.submit(["y"])
        held.batcher._done_tokens, held.batcher._done_s = 8.0, 4.0  # two tokens a second
        with pytest.raises(OverloadedError) as refusal:
            held.submit(["y" * 6])
        assert refusal.value.retry_after_s == 3
        with pytest.raises(OverloadedError) as refusal:
            held.submit(["y" * 1000])
        assert refusal.value.retry_after_s == 10  # when nothing waits
        held.submit(["health"], "urgent")
        held.go()
        assert wait_until(lambda: held.batcher.pending == 0)
        held.submit(["z" * 1000]).result(10)  # larger than the queue, and alone


def test_parts_are_handed_out_as_batches_finish():
    seen = []
    with Held(budget=4) as held:
        answer = held.submit(["aaaa", "bb", "cccc"], on_part=lambda places, part: seen.append((places, part)))
        held.go()
        whole = answer.result(10).encoded
    assert sorted(int(place) for places, _ in seen for place in places) == [0, 1, 2]
    for places, part in seen:
        np.testing.assert_array_equal(part.dense.vectors, whole.dense.vectors[places])


def test_a_lost_device_refuses_everyone_from_then_on(monkeypatch):
    with Held(budget=8) as held:

        def lost(rows):
            raise DeviceError("the device has failed")

        waiting = [held.submit(["a" * 8]), held.submit(["b" * 8])]
        monkeypatch.setattr(held.encoder, "encode_rows", lost)
        held.go()
        for answer in waiting:
            with pytest.raises(DeviceError):
                answer.result(10)
        with pytest.raises(DeviceError):
            held.submit(["c"])
        with pytest.raises(DeviceError):
            held.submit(["c"], "urgent")
        assert held.batcher.pending == 0


def test_closing_finishes_what_is_queued_and_refuses_more():
    with Held() as held:
        answer = held.submit(["done"])
        held.go()
        held.batcher.close()
        assert answer.result(0).encoded.tokens.tolist() == [4]
        with pytest.raises(ApiError) as refusal:
            held.submit(["more"])
        assert refusal.value.status == 503


def test_nothing_is_computed_while_nothing_waits():
    with Held() as held:
        held.go()
        assert wait_until(lambda: held.batcher.pending == 0)
        before = time.thread_time()
        threads = threading.active_count()
        time.sleep(0.05)
        assert threading.active_count() == threads
        assert time.thread_time() - before < 0.05
        assert held.batcher.waiting() == dict.fromkeys(LANES, 0)


def test_the_next_batch_takes_those_in_who_come_within_the_next_turns_of_the_loop(monkeypatch):
    monkeypatch.setattr("api.inference.batcher.TURN_S", 30)

    async def call():
        with Held(budget=1000) as held:
            held.batcher.loop = asyncio.get_running_loop()
            second = held.submit(["bb"])
            held.go()
            assert wait_until(lambda: held.batcher.last_success is not None)  # the loop stands still meanwhile
            third = held.submit(["cc"])
            await asyncio.gather(asyncio.wrap_future(second), asyncio.wrap_future(third))
            return held.calls

    assert [sorted(call) for call in asyncio.run(call())] == [["bb", "cc"]]


def test_a_loop_that_stands_still_or_is_closed_holds_nobody_up():
    with Held(budget=1000) as held:
        held.batcher.loop = loop = asyncio.new_event_loop()
        answer = held.submit(["bb"])
        held.go()
        assert answer.result(10).encoded.tokens.tolist() == [2]
        loop.close()
    with Held(budget=1000) as held:
        held.batcher.loop = loop
        answer = held.submit(["bb"])
        held.go()
        assert answer.result(10).encoded.tokens.tolist() == [2]


@pytest.mark.parametrize("long_ones", [1, 3])
def test_a_short_request_waits_for_a_batch_of_each_long_one_not_for_their_ends(long_ones):
    lanes, encoder = Lanes(), FakeEncoder()

    def put(texts):
        rows = encoder.tokenize(texts)
        lanes.put(QueuedRequest(rows, rows.lengths, np.arange(len(texts)), None), "document", 10**6)

    for _ in range(long_ones):
        put(["a" * 10] * 1000)
    for _ in range(30):
        lanes.take(budget=40, workers=1)
    put(["b" * 3])
    taken = [{len(request.rows) for request, _ in lanes.take(budget=40, workers=1)} for _ in range(long_ones + 1)]
    assert any(1 in sizes for sizes in taken)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=30), min_size=1, max_size=40),
    limit=st.integers(20, 300),
    budget=st.integers(12, 60),
)
def test_in_a_queue_that_is_always_full_nobody_waits_longer_than_its_tokens(sizes, limit, budget):
    lanes, encoder, taken, came = Lanes(), FakeEncoder(), 0, {}
    coming = []
    for lengths in sizes:
        rows = encoder.tokenize(["a" * length for length in lengths])
        order = np.argsort(-rows.lengths, kind="stable")
        coming.append(QueuedRequest(rows, rows.lengths, order, None, missing=len(lengths), cost=sum(lengths)))
    while coming or came:
        while coming and (not came or sum(request.cost for request in came) + coming[0].cost <= limit):
            came[coming[0]] = taken
            lanes.put(coming.pop(0), "document", limit)
        for request, places in lanes.take(budget, workers=1):
            taken += int(request.lengths[places].sum())
            request.missing -= len(places)
        for request in [request for request in came if not request.missing]:
            assert taken - came.pop(request) <= max(limit, request.cost) + budget


def test_who_comes_later_does_not_pass_by_one_that_is_nearly_done():
    lanes, encoder = Lanes(), FakeEncoder()

    def put(texts):
        rows = encoder.tokenize(texts)
        lanes.put(QueuedRequest(rows, rows.lengths, np.arange(len(texts)), None), "document", 10**6)

    put(["a" * 10] * 4 + ["bb"])
    lanes.take(budget=40, workers=1)
    put(["c" * 10] * 4)
    put(["d" * 10] * 4)
    assert 5 in {len(request.rows) for request, _ in lanes.take(budget=40, workers=1)}


def test_a_request_counts_as_a_whole_until_it_is_done():
    with Held(budget=8, limit=20) as held:
        first = held.submit(["a" * 8, "wait"])
        held.encoder.waiting.clear()
        held.encoder.gate.set()
        first.result(10)
        assert held.batcher.pending == 0
        held.encoder.gate.clear()
        held.submit(["b" * 8, "wait" * 2])
        assert held.encoder.waiting.wait(10)
        assert held.batcher.pending == 16
        with pytest.raises(OverloadedError):
            held.submit(["c" * 5])


def test_a_batch_waits_for_short_requests_that_are_on_their_way():
    with Held(budget=1000) as held:
        held.batcher.expect()
        held.go()
        assert wait_until(lambda: held.batcher.pending == 0)
        first = held.submit(["aa"])
        time.sleep(0.05)
        assert not first.done()
        second = held.submit(["bb"])
        held.batcher.arrived()
        assert first.result(10).encoded.tokens.tolist() == second.result(10).encoded.tokens.tolist() == [2]
    assert [sorted(call) for call in held.calls] == [["aa", "bb"]]
