"""Which platform this is. The platform tells policy (thresholds, how it restarts); the kernel tells the limit.

Recognised by the variables that each platform documents, and inside containers by the cgroup path. A platform's
memory variable counts as a limit only where no cgroup limit can be seen (the VM platforms: Lambda, Fly, App Engine).
"""

from __future__ import annotations

from memwarden.facts import Fact
from memwarden.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Machine
    from memwarden.sense.cgroup import Cgroup


class Platform(Fact):
    """A hosting platform: its `name`, how it was `recognised`, and the memory it promises, where it says so."""

    name: str
    recognised: str
    limit_bytes: int | None = None
    limit_source: str = ""


# (name, variable that is always set there, variable with the size in MiB). Sources: each vendor's page on runtime
# environment variables. Order matters: the specific ones stand before the ones they may run on.
_VARIABLES = (
    ("render", "RENDER", ""),
    ("heroku", "DYNO", ""),
    ("fly", "FLY_APP_NAME", "FLY_VM_MEMORY_MB"),
    ("lambda", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"),
    ("app-engine", "GAE_ENV", "GAE_MEMORY_MB"),
    ("app-engine", "GAE_INSTANCE", "GAE_MEMORY_MB"),
    ("cloud-run", "K_SERVICE", ""),
    ("cloud-run", "CLOUD_RUN_JOB", ""),
    ("ecs", "ECS_CONTAINER_METADATA_URI_V4", ""),
    ("ecs", "ECS_CONTAINER_METADATA_URI", ""),
    ("railway", "RAILWAY_ENVIRONMENT", ""),
    ("azure-app-service", "WEBSITE_INSTANCE_ID", ""),
    ("kubernetes", "KUBERNETES_SERVICE_HOST", ""),
)

_PATHS = (
    ("kubernetes", "kubepods"),
    ("ecs", "/ecs/"),
    ("docker", "docker"),
    ("podman", "libpod"),
    ("containerd", "cri-containerd"),
    ("lxc", "lxc"),
)


# Files that a container engine leaves in every container.
MARKERS = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}

# Every variable that is looked at: also what `doctor --capture` may write down, so nothing secret is in it.
VARIABLES = frozenset(name for _, *pair in _VARIABLES for name in pair if name)


def identify(machine: Machine, cgroup: Cgroup | None) -> Platform:
    """The platform, from its variables, else from the cgroup path, else `container` or `local`."""
    environ = machine.environ
    for name, variable, size in _VARIABLES:
        if environ.get(variable):
            promised = _size(environ.get(size, ""))
            return Platform(
                name=name,
                recognised=f"${variable}",
                limit_bytes=promised,
                limit_source=f"${size}" if promised is not None else "",
            )
    path = cgroup.path if cgroup is not None else ""
    for name, word in _PATHS:
        if word in path:
            return Platform(name=name, recognised=f"cgroup path {path}")
    for marker, name in MARKERS.items():
        if machine.exists(marker):
            return Platform(name=name, recognised=marker)
    return Platform(name="local", recognised="no sign of a hosting platform")


def _size(text: str) -> int | None:
    """A promise in MiB, in bytes; None for text that is no sensible number of them."""
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text):
        return int(text) * MIB
    return None
