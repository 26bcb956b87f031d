"""Fakes for your tests and ours: a clock that jumps, a machine made of files, pressure on demand, a channel.

No test that uses these needs to sleep, to fill memory or to patch anything: a `Warden`, a `Sensor` and everything
else that looks at the world takes its clock and its machine as parameters.
"""

from __future__ import annotations

from memwarden.testing._channel import RecordingChannel
from memwarden.testing._clock import FakeClock
from memwarden.testing._machine import FakeMachine
from memwarden.testing._pressure import pressure, reading, replay

__all__ = ["FakeClock", "FakeMachine", "RecordingChannel", "pressure", "reading", "replay"]
