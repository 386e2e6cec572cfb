"""The writes of the ledger, step by step; `test_mirror_model` tests any order."""

from __future__ import annotations

import pytest
from vicibridge.mirror import ledger
from vicibridge.mirror.ledger import Ledger, Write
from vicibridge.mirror.model import BucketKey

A, B, CONN = ("VICI_SA", "gw1.a"), ("VICI_SA", "gw1.b"), ("VICI_CONN", "gw1.a")


class Source:
    def __init__(self, **values: bytes) -> None:
        self.values: dict[BucketKey, bytes] = {("VICI_SA", f"gw1.{name}"): value for name, value in values.items()}
        self.changed: dict[BucketKey, None] = dict.fromkeys(self.values)
        self.restored: list[BucketKey] = []

    def set(self, key: BucketKey, value: bytes | None) -> None:
        self.changed[key] = None
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value

    def keys(self) -> list[BucketKey]:
        return list(self.values)

    def value(self, key: BucketKey) -> bytes | None:
        return self.values.get(key)

    def restore(self, key: BucketKey, data: bytes) -> bool:
        self.restored.append(key)
        if data == b"bad":
            self.changed[key] = None
            return False
        self.values[key] = data
        return True


def opened(source: Source) -> Ledger:
    made = Ledger(source)
    made.open.update(("VICI_SA", "VICI_CONN"))
    return made


def sent(made: Ledger, now: float = 0.0, room: int = 100) -> list[tuple[BucketKey, bytes | None]]:
    return [(write.key, write.value) for write in made.writes(now, room)]


def one(made: Ledger, now: float = 0.0) -> Write:
    [write] = made.writes(now, 100)
    return write


def test_acknowledged_writes_count_as_written() -> None:
    source = Source(a=b"1", b=b"2")
    made = opened(source)
    first, second = made.writes(0, 100)
    assert (first.key, first.value, second.key) == (A, b"1", B) and not made.settled
    assert made.stored(first.number, 7) == (A, False)
    assert made.revisions == {A: 7}
    made.stored(second.number, 8)
    assert made.settled and made.complete and sent(made) == []
    source.set(A, None)
    assert made.stored(one(made).number, 9) == (A, True)
    assert made.revisions == {B: 8}


def test_writes_are_limited_by_room() -> None:
    made = opened(Source(**{f"k{number}": b"" for number in range(10)}))
    assert [len(sent(made, room=room)) for room in (3, 0, 4, 100, 100)] == [3, 0, 4, 3, 0]


def test_key_changed_in_flight_is_sent_again() -> None:
    source = Source(a=b"1")
    made = opened(source)
    write = one(made)
    source.set(A, b"2")
    assert sent(made) == [] and not made.settled
    made.stored(write.number, 1)
    assert not made.settled and sent(made) == [(A, b"2")]


def test_refused_key_is_retried_with_backoff_and_its_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.random, "uniform", lambda low, high: 1.0)
    source = Source(a=b"1", b=b"2")
    made = opened(source)
    first, second = made.writes(0, 100)
    assert made.refused(first.number, 0.0) == A
    made.stored(second.number, 1)
    assert (made.unwritten("VICI_SA"), made.complete, made.settled) == (1, False, True)
    now, waits = 0.0, []
    for number in range(9):
        source.set(A, b"%d" % number)  # it may change any number of times
        assert sent(made, now) == []
        waits.append(made.retry_in(now))
        now += waits[-1] or 0.0
        write = one(made, now)
        assert write.value == b"%d" % number and made.unwritten("VICI_SA") == 1
        made.refused(write.number, now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    made.stored(one(made, now + 60).number, 5)
    assert made.complete and made.retry_in(now) is None and made.revisions == {A: 5, B: 1}
    source.set(A, b"later")
    write = one(made, now + 60)
    made.refused(write.number, now + 60)
    assert made.retry_in(now + 60) == 1  # the delay starts again


def test_refused_key_without_a_value_is_dropped_unless_the_bucket_has_one() -> None:
    source = Source(a=b"1", b=b"2")
    made = opened(source)
    first, second = made.writes(0, 100)
    made.stored(first.number, 1)
    made.refused(second.number, 0.0)
    source.set(A, b"2")
    made.refused(one(made).number, 0.0)
    source.set(A, None)
    source.set(B, None)
    assert sent(made, 100.0) == [(A, None)]
    assert made.unwritten("VICI_SA") == 1


def test_foreign_key_is_deleted_after_any_number_of_refusals() -> None:
    odd = ("VICI_SA", "gw1.odd")
    made = opened(Source())
    assert compared(made, (odd, 3, b"")) == 1
    now = 0.0
    for _ in range(3):
        write = one(made, now)
        assert (write.key, write.value) == (odd, None)
        made.refused(write.number, now)
        now += 100
    made.stored(one(made, now).number, 4)
    assert made.settled and made.complete and not made.revisions


@pytest.mark.parametrize("looked_at", [False, True])
def test_unanswered_write_may_have_arrived(looked_at: bool) -> None:
    source = Source(a=b"1")
    made = opened(source)
    write = one(made)
    made.unsure(write.number)
    made.refused(write.number, 0.0)
    source.set(A, None)
    if looked_at:
        assert compared(made, (A, 1, b"1")) == 0
    assert sent(made, 100.0) == [(A, None)]


def test_ended_comparison_records_nothing() -> None:
    source = Source()
    made = opened(source)
    comparison = made.compare("VICI_SA", restore=False)
    comparison.finish()
    for number in range(100):
        source.set(("VICI_SA", f"gw1.{number}"), b"")
        sent(made)
    assert not comparison.touched


def test_keys_of_a_closed_bucket_wait() -> None:
    source = Source(a=b"1")
    source.set(CONN, b"3")
    made = Ledger(source)
    made.open.add("VICI_CONN")
    assert sent(made) == [(CONN, b"3")]
    assert (made.unwritten("VICI_SA"), made.unwritten("VICI_CONN"), made.complete) == (1, 0, False)
    assert made.reopen("VICI_SA") and not made.reopen("VICI_CONN")
    write = one(made)
    made.open.remove("VICI_SA")
    assert made.put_back(write.number) == A and sent(made) == [] and made.unwritten("VICI_SA") == 1
    assert made.reopen("VICI_SA") and sent(made) == [(A, b"1")] and made.complete


def test_refused_key_of_a_closed_bucket_counts_once() -> None:
    made = opened(Source(a=b"1"))
    made.refused(one(made).number, 0.0)
    made.open.clear()
    assert sent(made, 10.0) == [] and made.unwritten("VICI_SA") == 1
    made.reopen("VICI_SA")
    made.stored(one(made, 10.0).number, 1)
    assert made.complete


def test_writes_in_flight_at_a_disconnect_are_sent_again() -> None:
    source = Source(a=b"1", b=b"2")
    made = opened(source)
    first, _ = made.writes(0, 100)
    made.stored(first.number, 1)
    made.open.clear()
    source.set(A, b"3")
    assert sent(made) == []
    made.recall()
    made.open.add("VICI_SA")
    assert sorted(sent(made)) == [(A, b"3"), (B, b"2")]


def compared(made: Ledger, *entries: tuple[BucketKey, int, bytes | None], restore: bool = False) -> int:
    comparison = made.compare("VICI_SA", restore=restore)
    for entry in entries:
        comparison.entry(*entry)
    return comparison.finish()


def test_value_that_differs_from_the_acknowledged_one_is_rewritten() -> None:
    source = Source(a=b"1", b=b"2")
    made = opened(source)
    for number, write in enumerate(made.writes(0, 100), 1):
        made.stored(write.number, number)
    assert compared(made, (A, 1, b"1"), (B, 2, b"2")) == 0 and sent(made) == []
    odd = ("VICI_SA", "gw1.odd")
    assert compared(made, (odd, 3, b""), (A, 4, b"x")) == 3
    assert B not in made.revisions  # the acknowledged revision is outdated
    assert {key: value for key, value in sent(made)} == {odd: None, A: b"1", B: b"2"}


def test_key_deleted_by_another_client_while_the_bucket_is_read() -> None:
    made = opened(Source(a=b"1"))
    made.stored(one(made).number, 1)
    assert compared(made, (A, 1, b"1"), (A, 2, None)) == 1 and sent(made) == [(A, b"1")]


def test_writes_in_flight_during_a_comparison_are_no_differences() -> None:
    source = Source(a=b"1", b=b"2")
    made = opened(source)
    first, second = made.writes(0, 100)
    made.stored(first.number, 1)
    comparison = made.compare("VICI_SA", restore=False)
    comparison.entry(A, 1, b"1")
    made.stored(second.number, 5)  # was in flight at the start, and is not listed
    source.set(A, b"3")
    again = one(made)
    comparison.entry(A, 6, b"3")  # read before the acknowledgement
    made.stored(again.number, 6)
    assert comparison.finish() == 0 and made.settled and made.revisions == {A: 6, B: 5}


def test_waiting_key_is_not_a_difference() -> None:
    source = Source(a=b"1")
    made = opened(source)
    made.refused(one(made).number, 0.0)
    source.set(B, b"2")
    assert compared(made, (B, 1, b"x")) == 0
    assert sent(made) == [(B, b"2")]


def test_values_are_restored_once() -> None:
    source = Source()
    made = opened(source)
    assert compared(made, (A, 3, b"1"), (B, 4, b"bad"), restore=True) == 0
    assert made.revisions == {A: 3} and source.restored == [A, B]
    assert sent(made) == [(B, None)]


def test_waiting_keys_that_disappear_are_dropped() -> None:
    source = Source(a=b"1")
    made = opened(source)
    made.stored(one(made).number, 1)
    made.open.clear()
    for number in range(5000):
        source.changed["VICI_SA", f"gw1.gone.{number}"] = None
        if not number % 3:
            assert sent(made) is not None
        made.forget_gone()
        assert len(source.changed) + made.unwritten("VICI_SA") <= 1001
    source.set(A, None)
    odd = ("VICI_SA", "gw1.odd")
    made.recall()
    assert compared(made, (A, 1, b"1"), (odd, 2, b"")) == 1
    for number in range(2000):
        source.changed["VICI_SA", f"gw1.gone.{number}"] = None
        made.forget_gone()
    made.open.add("VICI_SA")
    assert {(A, None), (odd, None)} <= set(sent(made, room=10_000))
