"""The tables: what is wrong is said in one line each, what is secret nowhere, and nothing wrong stops anybody."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memwarden
from memwarden.errors import ConfigError, DeliveryError
from memwarden.facts import Level
from memwarden.tell.channels import KINDS, Configured, build, options_of, problems
from memwarden.tell.channels.secret import Redactor, Secret, place_of
from memwarden.tell.channels.settings import COMMON, Option, parse_level
from tests.tell.channels.conftest import WHERE, notice

if TYPE_CHECKING:
    from pathlib import Path

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(memwarden.__file__)))


def built(toml: str, *, environ: dict[str, str] | None = None, folder: str = "/nowhere") -> tuple[Configured, ...]:
    return build(tomllib.loads(toml), where=WHERE, environ=environ or {}, folder=folder)


def test_how_a_channel_is_used() -> None:
    mail, chat, log = built("""
        [mail]
        kind = "smtp"
        host = "localhost"
        security = "none"
        from = "a@example.org"
        to = "b@example.org"
        [chat]
        kind = "slack"
        url = "https://hooks.slack.com/services/T/B/X"
        min_level = "Critical"
        throttle = "1m"
        timeout = 5
        attempts = 7
        tier = 2
        enabled = false
        [log]
        kind = "log"
    """)
    assert (mail.name, mail.min_level, mail.throttle_s, mail.timeout_s, mail.attempts, mail.tier, mail.enabled) == (
        "mail", Level.WARNING, 900.0, 30.0, 3, 0, True,
    )  # fmt: skip
    assert (chat.min_level, chat.throttle_s, chat.timeout_s, chat.attempts, chat.tier, chat.enabled) == (
        Level.CRITICAL, 60.0, 5.0, 7, 2, False,
    )  # fmt: skip
    assert log.throttle_s == 0.0
    assert problems((mail, chat, log)) == ()


def test_secrets_come_from_variables_and_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  file-key-file-key \n")
    table = """
        [one]
        kind = "pagerduty"
        routing_key_file = "key"
        [two]
        kind = "pagerduty"
        routing_key_env = "PD"
    """
    found = built(table, environ={"PD": "env-key-env-key"}, folder=str(tmp_path))
    keys = [each.channel.event(notice(), "trigger")["routing_key"] for each in found]  # type: ignore[attr-defined]  # PagerDuty's
    assert keys == ["file-key-file-key", "env-key-env-key"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('routing_key = "K"', "routing_key: is a secret, and is not read from here; write routing_key_env or"),
        ('routing_key_env = "NOT_SET"', "the environment variable NOT_SET is not set"),
        ('routing_key_env = ""', "is empty or no text; name an environment variable"),
        ("routing_key_env = 7", "is empty or no text; name an environment variable"),
        ('routing_key_file = "absent"', "absent cannot be read: No such file"),
        ('routing_key_file = "."', "Is a directory"),
        ('routing_key_file = "pipe"', "is no regular file"),
        ('routing_key_file = "empty"', "is empty; write the secret into it"),
        ('routing_key_file = "large"', "is larger than 64 KiB"),
        ('routing_key_file = "binary"', "is no text in UTF-8"),
        ('routing_key_file = "two-lines"', "is no text in one line"),
        ('routing_key_env = "SET"\nrouting_key_file = "good"', "routing_key_file says it too; keep one of them"),
        ("", "routing_key_env or routing_key_file is missing"),
    ],
)
def test_a_secret_that_is_not_there_is_one_clear_line(line: str, words: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files = {
        "empty": b" \n",
        "large": b"x" * 70_000,
        "binary": b"\xff\xfe\xfd",
        "two-lines": b"top\nsecret",
        "good": b"k",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (found,) = built(f'[pd]\nkind = "pagerduty"\n{line}', environ={"SET": "x"}, folder=str(tmp_path))
    (problem,) = found.channel.check()
    assert words in problem
    assert problem.startswith(f"{WHERE}.pd")
    assert "top" not in problem
    assert "\n" not in problem


SECRETS = [(kind, option) for kind in KINDS if kind != "apprise" for option in options_of(kind) if option.secret]


@pytest.mark.parametrize(("kind", "option"), SECRETS, ids=lambda each: getattr(each, "name", each))
@pytest.mark.parametrize("spoilt", ["{}\nnext line", "{}\u200b", "\x07{}", "{}\t{}"])
def test_no_part_of_a_secret_that_cannot_be_read_is_quoted(kind: str, option: Option, spoilt: str) -> None:
    secret = "".join(f"S3cr3t{number}" for number in range(30))
    environ = {"K": spoilt.format(secret, secret)}
    toml = f'[x]\nkind = "{kind}"\n{option.name}_env = "K"'
    written = f'[x]\nkind = "{kind}"\n{option.name} = ["{secret}", 7]'
    for (found,) in (built(toml, environ=environ), built(written)):
        problems = found.channel.check()
        assert problems
        assert "S3cr3t" not in "".join(problems)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('kind = "slak"\nurl = "https://x"', "'slak' is no kind of channel; did you mean 'slack'?"),
        ('url = "https://x"', "has no kind; write kind = one of smtp, slack"),
        ("kind = 7", "is no kind of channel"),
        ('kind = "slack"', "url, url_env or url_file is missing; it says the webhook's address"),
        (
            'kind = "slack"\nurl = "https://x.example/y"\nchanel = "#x"',
            "there is no setting 'chanel'; did you mean 'channel'?",
        ),
        ('kind = "slack"\nurl = "ftp://x.example/y"', "url: is no http or https address"),
        ('kind = "slack"\nurl = "hooks.slack.com/x"', "url: is no http or https address"),
        ('kind = "slack"\nurl = "https:///x"', "url: has no host"),
        ('kind = "slack"\nurl = "https://x:99999/y"', "url: is no address"),
        ('kind = "slack"\nurl = "https://user:pw@x/y"', "url: has a login in it"),
        ('kind = "slack"\nurl = "https://x/y z"', "url: has a character that no address has"),
        ('kind = "slack"\nurl = 7', "url: is no text in one line"),
        ('kind = "log"\nmin_level = "loud"', "min_level: 'loud' is no level"),
        ('kind = "log"\nthrottle = "soon"', "throttle: "),
        ('kind = "log"\ntimeout = 0', "timeout: 0 is no time-out"),
        ('kind = "log"\ntimeout = "1h"', "timeout: '1h' is no time-out"),
        ('kind = "log"\nattempts = 0', "attempts: 0 is no number from 1 to 20"),
        ('kind = "log"\nattempts = true', "attempts: True is no number"),
        ('kind = "log"\ntier = -1', "tier: -1 is no number from 0 to 20"),
        ('kind = "log"\nenabled = "maybe"', "enabled: 'maybe' is not a switch"),
        ('kind = "webhook"\nurl = "https://x"\nsecret_env = "SHORT"', "secret_env: is shorter than 16"),
        ('kind = "webhook"\nurl = "https://x"\nheaders = { Host = "y" }', "headers: Host is set by memwarden"),
        ('kind = "webhook"\nurl = "https://x"\nheaders = { "a b" = "y" }', "is no header"),
        ('kind = "webhook"\nurl = "https://x"\nheaders = { a = "b\\nc" }', "no text in one line"),
        ('kind = "webhook"\nurl = "https://x"\nheaders = "y"', "is no table"),
    ],
)
def test_what_is_wrong_is_one_clear_line_and_sending_there_fails_for_good(toml: str, words: str) -> None:
    (found,) = built(f"[ops]\n{toml}", environ={"SHORT": "hunter2"})
    (problem,) = problems((found,))
    assert words in problem
    assert problem.startswith(f"{WHERE}.ops")
    assert "\n" not in problem
    assert "hunter2" not in problem
    assert "pw" not in problem
    for call in (found.channel.warm_up, lambda: found.channel.send([notice()], timeout_s=1)):
        with pytest.raises(DeliveryError) as caught:
            call()
        assert not caught.value.recoverable
        assert words in str(caught.value)
    found.channel.close()


def test_every_wrong_line_is_found_at_once() -> None:
    (found,) = built('[ops]\nkind = "smtp"\nhots = "x"\nport = "y"\nto = []')
    assert len(found.channel.check()) == 5  # hots; host and from are missing; port; to


def test_one_wrong_channel_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    wrong, right = built('[wrong]\nkind = "slak"\n[right]\nkind = "log"')
    assert wrong.channel.check()
    assert right.channel.check() == ()
    right.channel.send([notice()], timeout_s=1)
    assert "api uses 91 %" in caplog.text


@pytest.mark.parametrize("table", [[], "x", None, 7])
def test_what_is_no_table_at_all_is_refused(table: Any) -> None:
    with pytest.raises(ConfigError, match="is no table"):
        build(table, where=WHERE, environ={})


def test_a_channel_that_is_no_table_is_said(tmp_path: Path) -> None:
    (found,) = build({"ops": "x"}, where=WHERE, environ={})
    assert found.channel.check() == (f"{WHERE}.ops: is no table; write [alerts.channels.ops]",)


TWICE = """
    [first]
    kind = "slack"
    url = "https://hooks.example.org/x"
    [second]
    kind = "slack"
    url_env = "HOOK"
    {}
"""


@pytest.mark.parametrize(
    ("more", "is_twice"), [("", True), ("tier = 1", False), ('channel = "#x"', False), ("enabled = false", False)]
)
def test_the_same_people_twice_is_found(more: str, is_twice: bool) -> None:
    found = built(TWICE.format(more), environ={"HOOK": "https://hooks.example.org/x"})
    second = f"{WHERE}.second: goes to the same as first; remove one, or give one another tier"
    assert problems(found) == ((second,) if is_twice else ())
    assert found[1].channel.name == "second"
    assert found[1].channel.kind == "slack"


def test_the_same_recipients_in_another_order_are_the_same() -> None:
    one = '[{}]\nkind = "smtp"\nhost = "{}"\nsecurity = "none"\nfrom = "w@example.org"\nto = {}\n'
    found = built(one.format("a", "h1", '["x@example.org", "Y <y@example.org>"]')
                  + one.format("b", "h2", '["y@EXAMPLE.org", "x@example.org"]'))  # fmt: skip
    assert len(problems(found)) == 1


@unhurried
@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["kind", "url", "to", "command", "throttle"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
                                    | st.sampled_from(sorted(set(KINDS) - {"apprise"})),
                                    lambda inner: st.lists(inner, max_size=3)
                                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6),
                       max_size=8))  # fmt: skip
def test_no_table_whatever_is_in_it_raises(table: dict[str, Any]) -> None:
    (found,) = build({"ops": table}, where=WHERE, environ={}, folder="/nowhere")
    for problem in found.channel.check():
        assert "\n" not in problem


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_setting_says_what_it_is_for_and_is_in_the_reference(kind: str) -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    with open(os.path.join(root, "docs", "reference", "channels.md"), encoding="utf-8") as file:
        page = file.read()
    section = page.partition(f"## `{kind}`")[2].partition("\n## ")[0]
    common = page.partition("## Every channel")[2].partition("\n## ")[0]
    assert section
    for option in options_of(kind):
        assert option.about
        assert f"`{option.name}`" in (common if option in COMMON else section)


@pytest.mark.parametrize("word", ["warning", " CRITICAL ", "Emergency", "normal", "healthy"])
def test_levels_by_name(word: str) -> None:
    assert parse_level(word, where="x") == Level[word.strip().upper()]


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("hunter2")
    assert [str(secret), repr(secret), repr({"a": [secret]}), f"{secret}"] == ["***", "***", "{'a': [***]}", "***"]
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)
    assert secret == Secret("hunter2")
    assert secret != "hunter2"


URL = (
    "https://user:p%40ssword@hooks.example.org:8443/services/T00000000/B00000000/XXXXXXXXXXXXXXXX?key=abc%2Fdef123#frag"
)


@pytest.mark.parametrize(
    "text",
    [
        URL, "/services/T00000000/B00000000/XXXXXXXXXXXXXXXX?key=abc%2Fdef123", "token XXXXXXXXXXXXXXXX is unknown",
        "abc/def123", "no p@ssword", repr(URL),
    ],
)  # fmt: skip
def test_an_address_is_taken_out_of_what_others_say_in_whole_and_in_part(text: str) -> None:
    found = Redactor(Secret(URL))(f"before {text} after")
    for part in ("XXXXXX", "T000", "B000", "def123", "ssword"):
        assert part not in found
    assert found.startswith("before ")
    assert found.endswith(" after")


def test_the_host_may_be_shown() -> None:
    assert Redactor(Secret("https://x.example/x"))("https://x.example gave 404 x") == "https://x.example gave 404 x"
    assert place_of(URL) == "https://hooks.example.org:8443"
    assert Redactor(Secret(URL))("https://hooks.example.org:8443 refused") == "https://hooks.example.org:8443 refused"


@unhurried
@given(
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=30), st.text(max_size=20)
)
def test_no_secret_is_left_whatever_is_around_it(secret: str, around: str) -> None:
    from base64 import b64encode
    from urllib.parse import quote

    redact = Redactor(Secret(secret))
    for form in (secret, quote(secret), quote(secret, safe=""), repr(secret), b64encode(secret.encode()).decode()):
        found = redact(f"{around} {form} {around}")
        assert secret not in found.replace(around, "") or secret in "***"


# --- weight ----------------------------------------------------------------------------------------------------------


def loaded_by(program: str) -> set[str]:
    text = f"import sys; sys.path.insert(0, {SOURCE!r}); {program}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_a_log_channel_loads_no_network() -> None:
    heavy = {"ssl", "socket", "http.client", "smtplib", "email", "subprocess", "asyncio", "sqlite3", "apprise"}
    build_log = "from memwarden.tell.channels import build; build({'a': {'kind': 'log'}}, where='x', environ={})"
    assert loaded_by(build_log) & heavy == set()


def test_a_webhook_loads_no_mail_and_nothing_of_a_third_party() -> None:
    table = "{'a': {'kind': 'slack', 'url': 'https://x.y/z'}}"
    make = f"from memwarden.tell.channels import build; build({table}, where='x', environ={{}})"
    found = loaded_by(make)
    assert "http.client" in found
    assert found & {"smtplib", "subprocess", "asyncio", "urllib.request", "requests", "email.mime"} == set()


def test_what_has_no_extra_is_named_by_its_problem_alone() -> None:
    program = (
        "from memwarden.tell.channels import build; "
        "found = build({'a': {'kind': 'apprise', 'urls': 'json://x'}}, where='w', environ={}); "
        "assert 'memwarden[apprise]' in found[0].channel.check()[0], found[0].channel.check()"
    )
    loaded_by(program)
