"""Every setting, from every place it can be written in, with the place named."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.config import PRESETS, SETTINGS, Config, Settled, preset_for, settle, table
from memwarden.errors import ConfigError, MemwardenError
from memwarden.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Another value than the default for each setting, as text; what it becomes.
_OTHER: dict[str, tuple[str, Any]] = {
    "enabled": ("no", False),
    "limit": ("64M", 64 * MIB),
    "warning": ("50%", 0.5),
    "critical": ("0.8", 0.8),
    "emergency": ("93", 0.93),
    "leave_gap": ("2%", 0.02),
    "dwell": ("7s", 7.0),
    "interval": ("4s", 4.0),
    "min_interval": ("20ms", 0.02),
    "window": ("1h", 3600.0),
    "relieve": ("off", False),
    "warning_faster": ("off", False),
    "critical_cleanup": ("no", False),
    "emergency_cleanup": ("0", False),
    "proactive_gc": ("0", False),
    "gc_share": ("0.5", 0.5),
    "fence": ("on", "on"),
    "leak_detection": ("false", False),
    "leak_interval": ("1m", 60.0),
    "leak_probe": ("no", False),
    "leak_census": ("no", False),
    "leader": ("off", False),
    "blackbox": ("no", False),
    "dir": ("/var/lib/x", "/var/lib/x"),
    "pressure_file": ("/tmp/force", "/tmp/force"),
    "job_limit": ("1G", 1024 * MIB),
    "job_auto_split": ("no", False),
}


_NO_TEXTS = [each for each in SETTINGS if each.name not in ("dir", "pressure_file")]


def _settle(folder: Path, environ: dict[str, str] | None = None, **arguments: Any) -> Settled:
    return settle(arguments, environ=environ or {}, preset=None, folder=str(folder))


def _refused(folder: Path, environ: dict[str, str] | None = None, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        _settle(folder, environ, **arguments)
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.exit_code == 2
    return line


def test_every_setting_is_tried_here() -> None:
    assert {each.name for each in SETTINGS} == set(_OTHER)
    assert {each.key for each in SETTINGS} == set(Config._fields)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_argument_beats_environment_beats_file_beats_default(setting: Any, tmp_path: Path) -> None:
    text, value = _OTHER[setting.name]
    default = getattr(Config(), setting.key)
    assert value != default
    found = _settle(tmp_path)
    assert (getattr(found.config, setting.key), found.origins[setting.key]) == (default, "default")

    file = tmp_path / "memwarden.toml"
    file.write_text(f'{setting.name} = "{text}"\n')
    found = _settle(tmp_path)
    assert (getattr(found.config, setting.key), found.origins[setting.key]) == (value, str(file))

    file.write_text(f"{setting.name} = {_toml(default)}\n" if default is not None else "")
    found = _settle(tmp_path, {setting.variable: text})
    assert (getattr(found.config, setting.key), found.origins[setting.key]) == (value, setting.variable)

    environ = {setting.variable: str(_plain(default))} if default is not None else {}
    for name in (setting.name, setting.key):
        found = _settle(tmp_path, environ, **{name: text})
        assert (getattr(found.config, setting.key), found.origins[setting.key]) == (value, "argument")


def _plain(value: object) -> object:
    return f"{value * 100}%" if isinstance(value, float) and value < 1 and value != 0.01 else value


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


_OLDER: list[tuple[str, str, str, Any]] = [
    ("MEMORY_WARNING_THRESHOLD", "0.6", "warning", 0.6),
    ("MEMORY_CRITICAL_THRESHOLD", "80", "critical", 0.8),
    ("MEMORY_EMERGENCY_THRESHOLD", "92%", "emergency", 0.92),
    ("MEMORY_MONITORING_INTERVAL", "15000", "interval_s", 15.0),
    ("MEMORY_MONITORING_INTERVAL", " 2500.5 ", "interval_s", 2.5005),
    ("MEMORY_MONITORING_INTERVAL", "30s", "interval_s", 30.0),
    ("MEMORY_MONITORING_ENABLED", "false", "enabled", False),
    ("MEMORY_DEFAULT_LIMIT_MB", "512", "job_limit_bytes", 512 * MIB),
    ("MEMORY_DEFAULT_LIMIT_MB", "0.5", "job_limit_bytes", MIB // 2),
    ("MEMORY_DEFAULT_LIMIT_MB", "1G", "job_limit_bytes", 1024 * MIB),
    ("MEMORY_LEAK_DETECTION", "0", "leak_detection", False),
    ("PROACTIVE_GC_ENABLED", "no", "proactive_gc", False),
    ("JOB_AUTO_SPLIT_ENABLED", "FALSE", "job_auto_split", False),
]


@pytest.mark.parametrize(("variable", "text", "key", "value"), _OLDER)
def test_the_older_names_are_understood_in_their_own_units(
    variable: str, text: str, key: str, value: Any, tmp_path: Path
) -> None:
    found = _settle(tmp_path, {variable: text})
    assert getattr(found.config, key) == pytest.approx(value)
    assert found.origins[key] == variable


def test_every_older_name_is_tried_above() -> None:
    assert {alias for each in SETTINGS for alias, _ in each.aliases} == {row[0] for row in _OLDER}


def test_our_own_variable_wins_over_an_older_name(tmp_path: Path) -> None:
    found = _settle(tmp_path, {"MEMWARDEN_WARNING": "50%", "MEMORY_WARNING_THRESHOLD": "60%"})
    assert (found.config.warning, found.origins["warning"]) == (0.5, "MEMWARDEN_WARNING")


@pytest.mark.parametrize("variable", ["MEMORY_MONITORING_INTERVAL", "MEMORY_DEFAULT_LIMIT_MB", "MEMWARDEN_LIMIT"])
@given(text=st.text(max_size=12).filter(str.strip))
def test_a_variable_gives_a_value_or_one_line_that_names_it(variable: str, text: str) -> None:
    try:
        settle(environ={variable: text}, preset=None, folder=None)
    except MemwardenError as error:
        line = str(error)
        assert (line.isprintable(), variable in line) == (True, True)


def test_an_empty_variable_says_nothing(tmp_path: Path) -> None:
    found = _settle(tmp_path, {"MEMWARDEN_WARNING": " ", "MEMWARDEN_PRESET": "", "MEMORY_DEFAULT_LIMIT_MB": ""})
    assert found.config == Config()


def test_the_table_of_a_project_file_is_read_where_there_is_no_file_of_our_own(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.other]\nx = 1\n[tool.memwarden]\nwarning = "50%"\n')
    assert _settle(tmp_path).origins["warning"] == str(project)
    own = tmp_path / "memwarden.toml"
    own.write_text("warning = 0.4\n")
    assert _settle(tmp_path).origins["warning"] == str(own)
    own.write_text("")
    assert _settle(tmp_path).config.warning == 0.5


def test_a_project_file_without_our_table_is_not_even_parsed(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("this is [not TOML")
    assert _settle(tmp_path).config == Config()


def test_the_named_file_is_read_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text("warning = 0.4\n")
    named = tmp_path / "else.toml"
    named.write_text("critical = 0.8\n")
    found = _settle(tmp_path, {"MEMWARDEN_CONFIG": str(named)})
    assert (found.config.warning, found.config.critical) == (0.75, 0.8)
    assert found.origins["critical"] == str(named)


@pytest.mark.parametrize("must", [True, False])
def test_a_folder_in_place_of_the_file_is_refused(must: bool, tmp_path: Path) -> None:
    path = tmp_path / "memwarden.toml"
    path.mkdir()
    line = _refused(tmp_path, {"MEMWARDEN_CONFIG": str(path)} if must else None)
    assert line == f"{path}: cannot be read: Is a directory; name a readable TOML file"


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    line = _refused(tmp_path, {"MEMWARDEN_CONFIG": str(tmp_path / "no.toml")})
    assert "no.toml: cannot be read: No such file or directory" in line


def test_a_link_that_leads_nowhere_or_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").symlink_to(tmp_path / "memwarden.toml")
    assert "memwarden.toml: cannot be read: " in _refused(tmp_path)
    (tmp_path / "memwarden.toml").unlink()
    (tmp_path / "memwarden.toml").symlink_to(tmp_path / "gone")
    assert "memwarden.toml: cannot be read: No such file" in _refused(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into: pytest's own are closed to all but the one who runs it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def _as_nobody(call: Callable[[], Any]) -> Any:
    """Call it without root's right to read everything."""
    before = os.geteuid()
    os.seteuid(65534 if before == 0 else before)
    try:
        return call()
    finally:
        os.seteuid(before)


def test_a_file_that_may_not_be_read_is_refused(open_folder: Path) -> None:
    path = open_folder / "memwarden.toml"
    path.write_text("warning = 0.5\n")
    path.chmod(0)
    assert _as_nobody(lambda: _refused(open_folder)).startswith(f"{path}: cannot be read: Permission denied")


def test_a_folder_that_may_not_be_looked_into_holds_no_settings_for_us(open_folder: Path) -> None:
    (open_folder / "memwarden.toml").write_text("warning = 0.5\n")
    open_folder.chmod(0)
    assert _as_nobody(lambda: _settle(open_folder)).config == Config()


@pytest.mark.parametrize(
    "raw",
    [
        b"warning = ",
        b"\xff\xfe",
        b"warning = 0.5\nwarning = 0.6\n",
        b"x = " + b"[" * 100_000,
        b"limit = " + b"9" * 5000,
        b"limit = \x00",
        b"warning = 2026-13-45\n",
    ],
    ids=range(7),
)
def test_a_file_that_is_no_toml_is_refused_with_its_name(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "memwarden.toml"
    path.write_bytes(raw)
    line = _refused(tmp_path)
    assert line.startswith(f"{path}: is not TOML: ")
    assert line.endswith("; correct the file or remove it")


@pytest.mark.parametrize(
    "text",
    ["tool = 3 # memwarden", "[tool]\nmemwarden = 'x'", "[[tool.memwarden]]\nwarning = 0.5", "tool = [] # memwarden"],
)
def test_a_project_file_of_a_strange_shape_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert "is not a table; write the settings below [tool.memwarden]" in _refused(tmp_path)


@pytest.mark.parametrize(
    "value",
    ["[1]", "{a = 1}", "2026-01-01", "nan", "inf", "-1", "true", "'a\\nb'", '"\\u0000"', "9" * 400, '""'],
)
@pytest.mark.parametrize(
    "setting", [each for each in SETTINGS if each.name not in ("dir", "pressure_file")], ids=lambda s: s.name
)
def test_a_value_of_the_wrong_shape_is_refused_with_file_and_name(setting: Any, value: str, tmp_path: Path) -> None:
    switch = isinstance(getattr(Config(), setting.key), bool)
    path = tmp_path / "memwarden.toml"
    path.write_text(f"{setting.name} = {value}\n")
    if value == '""' and (switch or setting.name == "limit"):  # off, and no limit
        assert not getattr(_settle(tmp_path).config, setting.key)
        return
    if switch and value == "true":
        assert getattr(_settle(tmp_path).config, setting.key) is True
        return
    assert _refused(tmp_path).startswith(f"{path}: {setting.name}: ")


@pytest.mark.parametrize("value", ["1", "true", "[]", '"\\u0000"'])
def test_a_path_that_is_no_text_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text(f"dir = {value}\n")
    assert "is not text; write it in quotes" in _refused(tmp_path)


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    assert _refused(tmp_path, warnign=0.5) == "warnign: there is no setting 'warnign'; did you mean 'warning'?"
    (tmp_path / "memwarden.toml").write_text("intervall = 5\n")
    assert _refused(tmp_path) == (
        f"{tmp_path}/memwarden.toml: intervall: there is no setting 'intervall'; did you mean 'interval'?"
    )
    (tmp_path / "memwarden.toml").write_text('"zzz\\n" = 5\n')
    assert _refused(tmp_path).endswith("there is no setting 'zzz\\n'; `memwarden config` lists them all")


def test_thresholds_out_of_order_name_both_and_where_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text("critical = 0.8\n")
    line = _refused(tmp_path, {"MEMORY_WARNING_THRESHOLD": "85"})
    assert line == (
        f"levels: thresholds out of order: warning 0.85 (MEMORY_WARNING_THRESHOLD), critical 0.8 "
        f"({tmp_path}/memwarden.toml); they must rise: warning < critical < emergency"
    )
    assert "critical 0.97 (argument), emergency 0.95 (default)" in _refused(tmp_path / "none", critical=0.97)


@given(lines=st.tuples(*[st.floats(0, 0.999)] * 3))
def test_only_rising_thresholds_are_accepted(lines: tuple[float, float, float]) -> None:
    names = dict(zip(("warning", "critical", "emergency"), lines, strict=True))
    rising = 0 < lines[0] < lines[1] < lines[2]
    try:
        settle({**names, "leave_gap": 0}, environ={}, preset=None, folder=None)
        accepted = True
    except ConfigError:
        accepted = False
    assert accepted is rising


def test_limits_of_pairs_name_both_origins(tmp_path: Path) -> None:
    assert _refused(tmp_path, warning=0.04) == (
        "leave_gap: leave_gap 0.05 (default) is not below warning 0.04 (argument); lower the one or raise the other"
    )
    line = _refused(tmp_path, {"MEMWARDEN_MIN_INTERVAL": "1m"}, interval="30s")
    assert "min_interval 60 (MEMWARDEN_MIN_INTERVAL) is not below interval 30 (argument)" in line


@pytest.mark.parametrize(("platform", "preset"), [("render", "render"), ("local", "local"), ("heroku", "balanced")])
def test_the_preset_of_the_platform_stands_between_file_and_default(platform: str, preset: str, tmp_path: Path) -> None:
    assert preset_for(platform) == preset
    found = settle(environ={}, platform=platform, folder=str(tmp_path))
    assert found.preset == preset
    for key, value in PRESETS[preset].items():
        assert (getattr(found.config, key), found.origins[key]) == (value, f"preset {preset}")
    (tmp_path / "memwarden.toml").write_text("warning = 0.1\n")
    assert settle(environ={}, platform=platform, folder=str(tmp_path)).config.warning == 0.1


def test_the_presets_are_those_of_row_m4() -> None:
    names = ("warning", "critical", "emergency", "interval_s")
    assert [PRESETS["render"][name] for name in names] == [0.6, 0.75, 0.9, 15]
    assert [PRESETS["local"][name] for name in names] == [0.8, 0.9, 0.95, 30]
    assert [PRESETS["balanced"][name] for name in names[:3]] == [0.7, 0.85, 0.95]
    plain = settle(environ={}, preset=None, folder=None).config
    assert (plain.warning, plain.critical, plain.emergency) == (0.75, 0.9, 0.95)
    for name, size_mb in (("warning", 307), ("critical", 384), ("emergency", 460)):
        assert int(512 * PRESETS["render"][name]) == size_mb


def test_the_preset_can_be_named_in_the_environment_and_beaten_by_the_argument() -> None:
    environ = {"MEMWARDEN_PRESET": " render "}
    assert settle(environ=environ, folder=None).preset == "render"
    assert settle(environ=environ, preset="local", folder=None).preset == "local"
    assert settle(environ=environ, preset=None, folder=None).preset is None
    assert settle(environ={"MEMWARDEN_PRESET": "none"}, folder=None).preset is None
    with pytest.raises(ConfigError, match=r"^MEMWARDEN_PRESET: 'rendr' is no preset; write one of render, local"):
        settle(environ={"MEMWARDEN_PRESET": "rendr"}, folder=None)
    with pytest.raises(ConfigError, match=r"^preset: 'rendr' is no preset"):
        settle(environ={}, preset="rendr", folder=None)


def test_a_table_is_left_to_the_room_that_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text('warning = 0.5\n[alerts]\nrunbook = "x"\n')
    assert settle(environ={}, folder=str(tmp_path)).config.warning == 0.5
    assert table("alerts", environ={}, folder=str(tmp_path)) == ({"runbook": "x"}, f"{tmp_path}/memwarden.toml: alerts")
    assert table("jobs", environ={}, folder=str(tmp_path)) == ({}, "")


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text("alerts = 1\n")
    with pytest.raises(ConfigError, match="'alerts' is not a table"):
        table("alerts", environ={}, folder=str(tmp_path))
