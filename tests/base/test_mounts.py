"""What file system a folder is on, as mountinfo has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.mounts import NETWORK, file_system

_MOUNTS = b"""\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:40 / /srv/shared rw - nfs4 server:/x rw
23 22 0:41 / /srv/shared/local rw - tmpfs tmpfs rw
24 21 0:42 / /with\\040space rw - cifs //server/x rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/run", "ext4"),
        ("/srv/shared", "nfs4"),
        ("/srv/shared/run", "nfs4"),
        ("/srv/sharedother", "ext4"),
        ("/srv/shared/local/run", "tmpfs"),
        ("/with space/run", "cifs"),
    ],
)
def test_file_systems_are_recognised(folder: str, kind: str) -> None:
    assert file_system(_MOUNTS, folder) == kind
    assert (kind in NETWORK) == (kind in {"nfs4", "cifs"})


@given(st.binary(max_size=300), st.text(max_size=20))
def test_no_text_breaks_that(text: bytes, folder: str) -> None:
    file_system(text, folder)
