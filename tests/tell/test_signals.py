"""Signals through the slots of a black box: whatever they hold they fit, and whatever a slot holds is no surprise."""

from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden import blackbox
from memwarden.blackbox import POST_BYTES, BlackBox, Post, find_boxes, forget_old, mark_taken, read_box, read_posts
from memwarden.errors import BlackBoxError
from memwarden.facts import Level
from memwarden.tell.signals import (
    KINDS,
    NAME_BYTES,
    ONCE,
    SCOPES,
    WHATS,
    Signal,
    clean,
    from_text,
    key_of,
    settled,
    short,
    to_text,
)

if TYPE_CHECKING:
    from pathlib import Path

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXT = st.text(max_size=400)
WORD = st.text(min_size=1, max_size=200)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=10,
)
SIGNALS = st.builds(
    Signal, id=st.text("0123456789abcdef-", min_size=1, max_size=30), key=WORD, kind=st.sampled_from(sorted(KINDS)),
    what=st.sampled_from(WHATS), level=st.sampled_from(Level), title=TEXT, text=TEXT, unix_s=st.floats(0, 1e10),
    target=TEXT, host=TEXT, member=st.text("0123456789:", max_size=40), scope=st.sampled_from(SCOPES),
    details=st.dictionaries(WORD, JSON, max_size=6),
)  # fmt: skip
# With halves of characters, as names of files that are no UTF-8 have them.
WILD = st.text(st.characters(exclude_categories=()), min_size=1, max_size=40)
NAMES = st.text(st.sampled_from("ab\u0436\U00010000\udce9"), min_size=1, max_size=60)


def made(**more: Any) -> Signal:
    values: dict[str, Any] = {
        "id": "1", "key": "k", "kind": "spike", "what": "seen", "level": Level.WARNING, "title": "t", "text": "x",
        "unix_s": 1.0, "target": "a", "host": "h", "member": "m",
    }  # fmt: skip
    return Signal(**{**values, **more})


@settings(unhurried, max_examples=300)
@given(SIGNALS)
def test_every_signal_fits_into_a_slot_and_keeps_its_identity(signal: Signal) -> None:
    signal = settled(signal)
    text = to_text(signal)
    assert len(text.encode()) <= POST_BYTES
    back = from_text(text)
    assert back is not None
    kept = ("id", "kind", "what", "level", "unix_s", "key", "target", "host", "member", "scope")
    assert [getattr(back, name) for name in kept] == [getattr(signal, name) for name in kept]
    assert signal.title.startswith(back.title)
    assert settled(signal) == signal


@settings(unhurried, max_examples=300)
@given(name=NAMES, other=NAMES)
def test_a_state_has_one_name_however_long_its_targets_is(name: str, other: str) -> None:
    signal = made(target=name, key=key_of("spike", name))
    back = from_text(to_text(settled(signal)))
    assert back is not None
    assert (back.key, back.target) == (key_of("spike", name), short(clean(name)))
    assert (key_of("spike", name) == key_of("spike", other)) == (clean(name) == clean(other))
    assert len(json.dumps(back.target)) <= NAME_BYTES + 2


@settings(unhurried, max_examples=300)
@given(text=WILD, figure=st.floats() | st.integers(), words=st.lists(WILD, max_size=2))
def test_what_no_store_has_words_for_does_not_come_through(text: str, figure: float, words: list[str]) -> None:
    wild = made(title=text, text=text, target=text, member=text, details={text: text, "n": figure, "w": words})
    told = settled(wild)
    for found in (told, from_text(json.dumps({**wild.as_dict(), "key": "k"}, default=str))):
        assert found is not None
        json.dumps(found.as_dict(), ensure_ascii=False, allow_nan=False).encode()
        assert found.details["n"] is None or abs(found.details["n"]) < 2**63 or isinstance(figure, float)
    assert told.title == text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    ("kind", "what", "once"), [("custom", "seen", True), ("custom", "raised", None), ("spike", "seen", None)]
)
def test_what_happened_once_says_so_where_its_kind_does_not(kind: str, what: str, once: bool | None) -> None:
    told = settled(made(kind=kind, what=what, details={"text": "x" * 900}))
    back = from_text(to_text(told))
    assert back is not None
    assert (told.details.get(ONCE), back.details.get(ONCE)) == (once, once)


def test_a_signal_of_a_newer_version_is_one() -> None:
    values = json.loads(to_text(made()))
    assert from_text(json.dumps({**values, "colour": "red"})) == made()
    del values["title"]
    assert from_text(json.dumps(values)) is None


def test_the_least_telling_details_go_first() -> None:
    details = {"used_bytes": 1, "limit_bytes": 2, "long": "x" * 900}
    back = from_text(to_text(made(details=details)))
    assert back is not None
    assert back.details == {"used_bytes": 1, "limit_bytes": 2}


@settings(unhurried, max_examples=300)
@given(st.text(max_size=500) | JSON.map(json.dumps) | SIGNALS.map(settled).map(to_text).map(lambda text: text[:-1]))
def test_no_foreign_text_is_a_signal_or_raises(text: str) -> None:
    found = from_text(text)
    assert found is None or isinstance(found, Signal)


@unhurried
@given(SIGNALS, st.sampled_from(Signal._fields), JSON)
def test_one_wrong_field_is_no_signal_or_one_that_is_whole(signal: Signal, name: str, value: Any) -> None:
    values = json.loads(to_text(settled(signal)))
    values[name] = value
    found = from_text(json.dumps(values))
    if found is not None:
        assert all(isinstance(getattr(found, each), str) for each in ("id", "key", "title", "text", "target", "member"))
        assert isinstance(found.details, dict)


# --- slots ----------------------------------------------------------------------------------------------------------


def box_in(folder: str, unix_s: float = 1.0, pid: int = 1) -> BlackBox:
    return BlackBox(folder, pid=pid, unix_s=unix_s, monotonic_s=1.0, posts=True)


WAYS = ["post", "urgent", "replace", "take", "mark"]


@settings(unhurried, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(WAYS), st.integers(0, 20)), max_size=60))
def test_slots_hold_what_was_posted_until_it_is_taken_by_whoever(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box, held, number = box_in(folder), {}, 0
        assert box.path is not None
        for what, which in steps:
            if what in ("post", "urgent"):
                number += 1
                if box.post(1.0, 2.0, f"text {number}", urgent=what == "urgent"):
                    held[number] = f"text {number}"
                else:
                    number -= 1
            elif what == "replace":
                old = which if which in held else 0
                if box.replace(which, 1.0, 2.0, f"text {number + 1}"):
                    number += 1
                    assert held.pop(old)
                    held[number] = f"text {number}"
                else:
                    assert not old or len(held) > 13
            elif held:
                post = box.posts()[which % len(held)]
                held.pop(post.number)
                if what == "take":
                    box.take(post)
                else:
                    mark_taken(box.path, post)
                mark_taken(box.path, post)  # twice is once
            assert {post.number: post.text for post in box.posts()} == held
            assert read_posts(box.path) == box.posts() == read_box(box.path).posts
        assert read_box(box.path).damaged == 0


@settings(unhurried, max_examples=60)
@given(at=st.integers(0, 16 * 1024 - 1), junk=st.binary(min_size=1, max_size=300))
def test_a_damaged_slot_is_left_out_and_counted_and_the_others_stand(at: int, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = box_in(folder)
        texts = {f"text {number}" for number in range(13)}
        for text in sorted(texts):
            assert box.post(1.0, 2.0, text)
        assert box.path is not None
        with open(box.path, "r+b") as file:
            file.seek(blackbox.SIZE + at)
            file.write(junk[: 16 * 1024 - at])
        found = {post.text for post in read_posts(box.path)}
        assert found <= texts
        assert len(texts) - len(found) <= 2


def test_a_taken_slot_is_used_again_and_an_old_hand_cannot_take_the_new_one(tmp_path: Path) -> None:
    box = box_in(str(tmp_path))
    assert box.post(1.0, 1.0, "one")
    (first,) = box.posts()
    box.take(first)
    assert box.post(1.0, 1.0, "two")
    assert box.path is not None
    mark_taken(box.path, first)
    box.take(first)
    assert [post.text for post in box.posts()] == ["two"]


def test_boxes_with_something_to_tell_are_kept_longer(tmp_path: Path) -> None:
    for number in range(10):
        box = box_in(str(tmp_path), unix_s=number, pid=99_999_999)
        if number in (1, 7):
            box.post(1.0, 1.0, "untold")
        box.end_life("stopped")
        box.close()
    forget_old(str(tmp_path), keep=2)
    left = [os.path.basename(path).split("-")[2] for path in find_boxes(str(tmp_path))]
    assert left == ["9000.box", "8000.box", "7000.box"]  # 1 is beyond four times as many


def test_what_is_no_box_has_no_posts(tmp_path: Path) -> None:
    file = tmp_path / "x.box"
    file.write_bytes(b"nonsense")
    post = Post(slot=0, number=1, unix_s=1.0, monotonic_s=1.0, text="")
    for path in (str(file), str(tmp_path / "nowhere.box")):
        with pytest.raises(BlackBoxError, match=path):
            read_posts(path)
    mark_taken(str(file), post)
    assert file.read_bytes() == b"nonsense"
