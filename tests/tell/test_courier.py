"""One courier and a receiver that refuses: each notice once, and no longer than its lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memwarden.errors import DeliveryError
from memwarden.tell.courier import Courier
from memwarden.tell.outbox import Outbox
from memwarden.testing import RecordingChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memwarden.facts import Notice

    from .conftest import Desk


class Single(RecordingChannel):
    """Refuses for good what is more than one; `on_one` is called for each."""

    def __init__(self, name: str, on_one: Callable[[Notice], None]) -> None:
        super().__init__(name)
        self.on_one, self.calls = on_one, 0

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        self.calls += 1
        if len(notices) > 1:
            raise DeliveryError("400", where=self.name, recoverable=False)
        self.on_one(notices[0])
        super().send(notices, timeout_s=timeout_s)


def test_what_is_sent_one_by_one_is_ours_until_its_turn(desk: Desk) -> None:
    use = desk.settings.policy.channels["chat"]
    desk.outbox.take([desk.signal("raised", 2, target=f"t{number}") for number in range(10)])
    other = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    other._me = "1:2:3"
    taken: list[object] = []

    def slowly(_: Notice) -> None:
        desk.clock.advance(20)  # within the 30 s of one try, and ten of them are more than any lease
        taken.append(other.claim(use))

    channel = Single("chat", slowly)
    Courier(desk.outbox, channel, use).once()
    other.close()
    assert (len(channel.notices), taken) == (10, [None] * 10)


def test_one_by_one_ends_where_the_receiver_wants_a_rest(desk: Desk) -> None:
    use = desk.settings.policy.channels["chat"]
    desk.outbox.take([desk.signal("raised", 2, target=f"t{number}") for number in range(10)])

    def busy(_: Notice) -> None:
        raise DeliveryError("429", where="chat", recoverable=True, retry_after_s=60.0)

    channel = Single("chat", busy)
    courier = Courier(desk.outbox, channel, use)
    assert (courier.once(), courier.once(), channel.calls) == (True, False, 2)
    (state,) = [each for each in desk.outbox.channels() if each.name == "chat"]
    assert (state.failures, state.not_before_unix_s - desk.clock.wall()) == (1, 60.0)
    desk.clock.advance(60)
    channel.on_one = lambda _: None
    while courier.once():
        pass
    assert sorted(each.target for each in channel.notices) == [f"t{number}" for number in range(10)]
