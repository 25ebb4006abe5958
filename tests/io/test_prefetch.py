"""Results computed ahead in threads, and batches."""

import threading
import time

from dinomed.io.prefetch import batched, prefetch


def test_prefetch_keeps_the_order_and_does_not_run_away() -> None:
    started: list[int] = []
    results = prefetch(lambda x: started.append(x) or x * x, range(100), workers=2, ahead=3)
    assert next(results) == 0
    assert len(started) <= 7  # two workers, three ahead, the one given out, and one being submitted
    assert list(results) == [x * x for x in range(1, 100)]


def test_all_results_leave_no_threads_and_an_early_end_does_not_wait_for_them() -> None:
    before = set(threading.enumerate())  # an earlier test may have left threads
    results = prefetch(lambda x: x, range(3), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert set(threading.enumerate()) <= before
    blocked = threading.Event()
    results = prefetch(lambda x: x and blocked.wait(60), range(30), workers=2)
    assert next(results) == 0
    began = time.monotonic()
    del results
    assert time.monotonic() - began < 30
    blocked.set()


def test_batches_keep_the_order_and_the_last_one_is_shorter() -> None:
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []


def test_batches_of_one_key_end_where_the_key_changes_and_none_fits_all() -> None:
    keys = ["a", None, "a", "a", "b", None, None, "a", None]
    numbers = batched(enumerate(keys), 3, lambda item: item[1])
    assert [[place for place, _ in batch] for batch in numbers] == [[0, 1, 2], [3], [4, 5, 6], [7, 8]]
    assert list(batched([None, "b", "a"], 3, lambda key: key)) == [[None, "b"], ["a"]]
