"""The images of each step and each process."""

from itertools import chain, islice

from dinomed.pretrain.data.stream import BatchPositions


def test_processes_share_a_batch_in_order_and_a_resumed_run_continues() -> None:
    parts = [list(BatchPositions(range(2, 5), 6, rank * 3, 3)) for rank in range(2)]
    together = [first + second for first, second in zip(*parts, strict=True)]
    assert list(chain.from_iterable(together)) == list(range(12, 30))
    assert parts[0][1:] == list(BatchPositions(range(3, 5), 6, 0, 3))


def test_the_positions_of_a_long_run_are_not_stored() -> None:
    endless = BatchPositions(range(10**15), 1024, 512, 2)  # a list of them would not fit into any memory
    assert list(islice(endless, 2)) == [[512, 513], [1536, 1537]]
    assert len(endless) == 10**15
