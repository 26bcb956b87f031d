"""Builds the machine folders that cannot be captured here: `python -m tests.machines.build FOLDER`.

Texts follow the kernel's documents (Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst,
proc(5)) and what container runtimes and platforms document of themselves: which cgroup path, which mounts,
which variables. The limits in the expectations are written by hand beside the texts; usage is arithmetic over
them, as in `capture`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from tests.machines.capture import MIB, expect_cgroup, expect_machine, expect_rlimit

if TYPE_CHECKING:
    from collections.abc import Callable

    Files = dict[str, str]
    Machine = dict[str, Any]

GIB = 1 << 30
NO_V1_LIMIT = 9223372036854771712  # 2**63 - 1 rounded down to a page of 4 KiB

_ID = "3f4e1c0d9b8a7766554433221100ffeeddccbbaa99887766554433221100abcd"
_POD = "8c1b7a52_0d4e_4f6a_9a51_7b2f3c4d5e6f"
_SYS = "22 1 0:21 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n23 1 0:22 / /sys ro,nosuid - sysfs sysfs ro\n"

MACHINES: dict[str, Callable[[], Machine]] = {}


def machine(recipe: Callable[[], Machine]) -> Callable[[], Machine]:
    """Registers a recipe under its name."""
    MACHINES[recipe.__name__.replace("_", "-")] = recipe
    return recipe


def built(
    about: str,
    files: Files,
    expect: dict[str, Any],
    *,
    kernel: str = "6.1.0",
    platform: str = "local",
    environ: dict[str, str] | None = None,
) -> Machine:
    """One machine as it is stored."""
    return {
        "origin": "built",
        "kernel": kernel,
        "about": about,
        "environ": environ or {},
        "expect": {"platform": platform, "cgroup_version": None, **expect},
        "files": files,
    }


# --- texts -----------------------------------------------------------------------------------------


def process(*, total_mib: int = 16384, rlimit_data: str = "unlimited", rlimit_as: str = "unlimited") -> Files:
    """What /proc says of an ordinary process on a machine of that size, half of it free."""
    total = total_mib << 10
    return {
        "proc/self/statm": "60000 15000 4000 700 0 30000 0\n",
        "proc/self/status": (
            "Name:\tpython3\nUmask:\t0022\nState:\tR (running)\nTgid:\t17\nPid:\t17\nPPid:\t1\n"
            "VmPeak:\t  245000 kB\nVmSize:\t  240000 kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\n"
            "VmHWM:\t   62000 kB\nVmRSS:\t   60000 kB\nRssAnon:\t   44000 kB\nRssFile:\t   15000 kB\n"
            "RssShmem:\t    1000 kB\nVmData:\t  120000 kB\nVmStk:\t     132 kB\nVmExe:\t    2800 kB\n"
            "VmLib:\t   12000 kB\nVmPTE:\t     260 kB\nVmSwap:\t       0 kB\nThreads:\t3\n"
        ),
        "proc/self/limits": (
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max cpu time              unlimited            unlimited            seconds   \n"
            f"Max data size             {rlimit_data:<20} unlimited            bytes     \n"
            "Max stack size            8388608              unlimited            bytes     \n"
            "Max resident set          unlimited            unlimited            bytes     \n"
            f"Max address space         {rlimit_as:<20} unlimited            bytes     \n"
        ),
        "proc/meminfo": (
            f"MemTotal:       {total:>8} kB\nMemFree:        {total // 2:>8} kB\n"
            f"MemAvailable:   {total * 3 // 4:>8} kB\n"
            f"Buffers:        {total // 64:>8} kB\nCached:         {total // 4:>8} kB\n"
            f"SwapCached:            0 kB\n"
            f"Active:         {total // 8:>8} kB\nInactive:       {total // 8:>8} kB\n"
            f"SwapTotal:             0 kB\n"
            "SwapFree:              0 kB\nDirty:               120 kB\nWriteback:             0 kB\n"
            f"AnonPages:      {total // 8:>8} kB\nMapped:         {total // 32:>8} kB\n"
            f"Shmem:          {total // 128:>8} kB\n"
            f"KReclaimable:   {total // 100:>8} kB\nSlab:           {total // 50:>8} kB\n"
            f"SReclaimable:   {total // 100:>8} kB\n"
        ),
        "proc/pressure/memory": (
            "some avg10=0.00 avg60=0.04 avg300=0.01 total=184223\nfull avg10=0.00 avg60=0.03 avg300=0.00 total=151002\n"
        ),
    }


def v2_group(folder: str, *, limit: int | str, usage: int = 300 * MIB, high: int | str = "max") -> Files:
    """The memory files of one v2 cgroup; a tenth of the usage is inactive cache, a twentieth active."""
    where = folder.lstrip("/")
    stat = {
        "anon": usage * 7 // 10,
        "file": usage * 2 // 10,
        "kernel": usage // 20,
        "kernel_stack": 180224,
        "pagetables": 1048576,
        "percpu": 12960,
        "sock": 0,
        "shmem": usage // 20,
        "file_mapped": usage // 40,
        "file_dirty": 49152,
        "file_writeback": 4096,
        "anon_thp": 0,
        "inactive_anon": usage // 20,
        "active_anon": usage * 7 // 10,
        "inactive_file": usage // 10,
        "active_file": usage // 20,
        "unevictable": 0,
        "slab_reclaimable": 3145728,
        "slab_unreclaimable": 1572864,
        "slab": 4718592,
        "pgfault": 912441,
        "pgmajfault": 31,
    }
    return {
        f"{where}/cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
        f"{where}/cgroup.type": "domain\n",
        f"{where}/memory.current": f"{usage}\n",
        f"{where}/memory.events": "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\n",
        f"{where}/memory.high": f"{high}\n",
        f"{where}/memory.max": f"{limit}\n",
        f"{where}/memory.stat": "".join(f"{key} {value}\n" for key, value in stat.items()),
        f"{where}/memory.swap.current": "0\n",
        f"{where}/memory.swap.max": "0\n",
    }


def v1_group(
    folder: str,
    *,
    limit: int,
    usage: int = 300 * MIB,
    hierarchical: int | None = None,
    use_hierarchy: int = 1,
) -> Files:
    """The memory files of one v1 cgroup; the `total_` figures are larger than its own, as with children."""
    where = folder.lstrip("/")
    own = {
        "cache": usage // 10,
        "rss": usage // 4,
        "rss_huge": 0,
        "mapped_file": usage // 40,
        "dirty": 4096,
        "writeback": 0,
        "inactive_anon": 0,
        "active_anon": usage // 4,
        "inactive_file": usage // 20,
        "active_file": usage // 20,
        "unevictable": 0,
    }
    bound = {
        "hierarchical_memory_limit": limit if hierarchical is None else hierarchical,
        "hierarchical_memsw_limit": NO_V1_LIMIT,
    }
    total = {f"total_{key}": value * 2 for key, value in own.items()}
    return {
        f"{where}/memory.failcnt": "0\n",
        f"{where}/memory.limit_in_bytes": f"{limit}\n",
        f"{where}/memory.max_usage_in_bytes": f"{usage + MIB}\n",
        f"{where}/memory.memsw.limit_in_bytes": f"{NO_V1_LIMIT}\n",
        f"{where}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        f"{where}/memory.soft_limit_in_bytes": f"{NO_V1_LIMIT}\n",
        f"{where}/memory.stat": "".join(f"{k} {v}\n" for k, v in {**own, **bound, **total}.items()),
        f"{where}/memory.usage_in_bytes": f"{usage}\n",
        f"{where}/memory.use_hierarchy": f"{use_hierarchy}\n",
    }


def v2_mount(root: str = "/", point: str = "/sys/fs/cgroup", *, mount_id: int = 30) -> str:
    return f"{mount_id} 23 0:26 {root} {point} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"


def v1_mount(root: str = "/", point: str = "/sys/fs/cgroup/memory") -> str:
    """As runtimes mount it: other controllers before and behind, an optional field in the line."""
    tmpfs = "31 23 0:50 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755\n"
    lines = [
        f"{number} 31 0:{number} {root} {where} ro,nosuid,nodev,noexec,relatime master:{number}"
        f" - cgroup cgroup rw,{options}\n"
        for number, where, options in (
            (32, "/sys/fs/cgroup/systemd", "xattr,name=systemd"),
            (33, "/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            (34, point, "memory"),
            (35, "/sys/fs/cgroup/pids", "pids"),
        )
    ]
    return tmpfs + "".join(lines)


def v1_paths(path: str, *, unified: str | None = None) -> str:
    text = f"11:pids:{path}\n10:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"
    return text if unified is None else f"{text}0::{unified}\n"


def _on_v2(path: str, mount: str, *groups: Files, **about_process: Any) -> Files:
    files = {
        **process(**about_process),
        "proc/self/cgroup": f"0::{path}\n",
        "proc/self/mountinfo": _SYS + mount,
    }
    for group in groups:
        files |= group
    return files


def _on_v1(paths: str, mount: str, *groups: Files, **about_process: Any) -> Files:
    files = {**process(**about_process), "proc/self/cgroup": paths, "proc/self/mountinfo": _SYS + mount}
    for group in groups:
        files |= group
    return files


_V2 = "/sys/fs/cgroup"
_V1 = "/sys/fs/cgroup/memory"


# --- container runtimes ----------------------------------------------------------------------------


@machine
def docker_v1() -> Machine:
    path = f"/docker/{_ID}"
    files = _on_v1(v1_paths(path), v1_mount(path), v1_group(_V1, limit=512 * MIB))
    files[".dockerenv"] = ""
    expect = expect_cgroup(files, _V1, limit_bytes=512 * MIB, version=1)
    return built("Docker with --memory 512m on cgroup v1", files, expect, kernel="5.4.0", platform="docker")


@machine
def docker_v2() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=512 * MIB))
    files[".dockerenv"] = ""
    expect = expect_cgroup(files, _V2, limit_bytes=512 * MIB, version=2)
    return built("Docker with --memory 512m on cgroup v2, private namespace", files, expect, platform="docker")


@machine
def docker_v2_host_namespace() -> Machine:
    path = f"/system.slice/docker-{_ID}.scope"
    groups = (
        v2_group(f"{_V2}{path}", limit=GIB),
        v2_group(f"{_V2}/system.slice", limit="max", usage=4 * GIB),
    )
    files = _on_v2(path, v2_mount(), *groups, {"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"})
    expect = expect_cgroup(files, f"{_V2}{path}", limit_bytes=GIB, version=2)
    return built("Docker with --cgroupns host and the systemd driver", files, expect, platform="docker")


@machine
def docker_more_than_the_machine() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=64 * GIB))
    expect = expect_machine(files, cgroup_version=2)
    return built("Docker with --memory 64g on a machine of 16 GiB", files, expect)


@machine
def docker_in_docker_v1() -> Machine:
    """The inner daemon's mount root is deep inside of the outer container's cgroup."""
    outer, inner = f"/docker/{_ID}", f"/docker/{_ID}/docker/{_ID[::-1]}"
    groups = v1_group(_V1, limit=GIB, hierarchical=400 * MIB)
    files = _on_v1(v1_paths(inner), v1_mount(inner), groups)
    expect = expect_cgroup(files, _V1, limit_bytes=400 * MIB, version=1, source="/sys/fs/cgroup/memory/memory.stat")
    about = f"Docker in Docker on v1: the limit of {outer[:10]}... is only seen in hierarchical_memory_limit"
    return built(about, files, expect, kernel="5.4.0", platform="docker")


@machine
def containerd_colons_v1() -> Machine:
    path = f"/system.slice/containerd.service/kubepods-burstable-pod{_POD}.slice:cri-containerd:{_ID}"
    files = _on_v1(v1_paths(path), v1_mount(path), v1_group(_V1, limit=384 * MIB))
    expect = expect_cgroup(files, _V1, limit_bytes=384 * MIB, version=1)
    about = "containerd with the cgroupfs path of the systemd driver: the path holds colons"
    return built(about, files, expect, kernel="4.19.0", platform="kubernetes")


@machine
def containerd_colons_v2_host_namespace() -> Machine:
    path = f"/system.slice/containerd.service/kubepods-burstable-pod{_POD}.slice:cri-containerd:{_ID}"
    files = _on_v2(path, v2_mount(), v2_group(f"{_V2}{path}", limit=384 * MIB))
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu io memory pids\n"
    expect = expect_cgroup(files, f"{_V2}{path}", limit_bytes=384 * MIB, version=2)
    return built("the same on v2, seen in the host's namespace", files, expect, platform="kubernetes")


_KUBE = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@machine
def kubernetes_v1_systemd_burstable() -> Machine:
    slices = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_POD}.slice"
    path = f"{slices}/cri-containerd-{_ID}.scope"
    files = _on_v1(v1_paths(path), v1_mount(path), v1_group(_V1, limit=256 * MIB))
    expect = expect_cgroup(files, _V1, limit_bytes=256 * MIB, version=1)
    about = "Kubernetes, burstable pod, systemd driver, v1"
    return built(about, files, expect, kernel="5.10.0", platform="kubernetes", environ=_KUBE)


@machine
def kubernetes_v1_cgroupfs_guaranteed() -> Machine:
    path = f"/kubepods/pod{_POD}/{_ID}"
    files = _on_v1(v1_paths(path), v1_mount(path), v1_group(_V1, limit=2 * GIB, usage=1200 * MIB))
    expect = expect_cgroup(files, _V1, limit_bytes=2 * GIB, version=1)
    about = "Kubernetes, guaranteed pod, cgroupfs driver, v1"
    return built(about, files, expect, kernel="4.14.0", platform="kubernetes", environ=_KUBE)


@machine
def kubernetes_v2_guaranteed() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB))
    expect = expect_cgroup(files, _V2, limit_bytes=GIB, version=2)
    about = "Kubernetes, guaranteed pod, systemd driver, v2 with a private namespace"
    return built(about, files, expect, platform="kubernetes", environ=_KUBE)


@machine
def kubernetes_v2_pod_limit_tighter() -> Machine:
    pod = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_POD}.slice"
    path = f"{pod}/cri-containerd-{_ID}.scope"
    groups = (
        v2_group(f"{_V2}{path}", limit="max", usage=200 * MIB),
        v2_group(f"{_V2}{pod}", limit=768 * MIB, usage=600 * MIB),
        v2_group(f"{_V2}/kubepods.slice/kubepods-burstable.slice", limit="max", usage=6 * GIB),
        v2_group(f"{_V2}/kubepods.slice", limit=15 * GIB, usage=9 * GIB),
        {"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"},
    )
    files = _on_v2(path, v2_mount(), *groups)
    expect = expect_cgroup(files, f"{_V2}{pod}", limit_bytes=768 * MIB, version=2)
    about = "Kubernetes with a limit on the pod and none on the container, seen from the host's namespace"
    return built(about, files, expect, platform="kubernetes", environ=_KUBE)


@machine
def kubernetes_v2_besteffort() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit="max"))
    expect = expect_machine(files, cgroup_version=2)
    return built("Kubernetes, best effort: the node is the limit", files, expect, platform="kubernetes", environ=_KUBE)


@machine
def kubernetes_v2_high_from_memory_qos() -> Machine:
    """MemoryQoS of the kubelet sets memory.high below memory.max."""
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB, high=900 * MIB))
    expect = expect_cgroup(files, _V2, limit_bytes=GIB, version=2)
    return built("Kubernetes with MemoryQoS", files, expect, platform="kubernetes", environ=_KUBE)


@machine
def podman_rootless() -> Machine:
    user = "/user.slice/user-1000.slice/user@1000.service"
    path = f"{user}/user.slice/libpod-{_ID}.scope/container"
    groups = (
        v2_group(f"{_V2}{path}", limit="max", usage=150 * MIB),
        v2_group(f"{_V2}{user}/user.slice/libpod-{_ID}.scope", limit=640 * MIB, usage=160 * MIB),
        v2_group(f"{_V2}{user}", limit="max", usage=3 * GIB),
        {"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"},
    )
    files = _on_v2(path, v2_mount(), *groups)
    folder = f"{_V2}{user}/user.slice/libpod-{_ID}.scope"
    expect = expect_cgroup(files, folder, limit_bytes=640 * MIB, version=2)
    return built(
        "podman without root: the limit is on the scope above the container's own",
        files,
        expect,
        platform="podman",
    )


@machine
def podman_private_namespace() -> Machine:
    files = _on_v2("/container", v2_mount(), v2_group(f"{_V2}/container", limit="max"), v2_group(_V2, limit=640 * MIB))
    files["run/.containerenv"] = ""
    expect = expect_cgroup(files, _V2, limit_bytes=640 * MIB, version=2)
    return built("podman seen from inside of its namespace", files, expect, platform="podman")


@machine
def lxc_v1_with_lxcfs() -> Machine:
    """lxcfs answers /proc/meminfo with the container's own figures."""
    files = _on_v1(v1_paths("/lxc/web"), v1_mount(), v1_group(f"{_V1}/lxc/web", limit=2 * GIB), total_mib=2048)
    files |= v1_group(f"{_V1}/lxc", limit=NO_V1_LIMIT, usage=5 * GIB) | v1_group(_V1, limit=NO_V1_LIMIT, usage=9 * GIB)
    files["proc/self/mountinfo"] += "60 22 0:60 /proc/meminfo /proc/meminfo rw,nosuid - fuse.lxcfs lxcfs rw,user_id=0\n"
    expect = expect_cgroup(files, f"{_V1}/lxc/web", limit_bytes=2 * GIB, version=1)
    return built("LXC on v1; lxcfs makes MemTotal equal to the limit", files, expect, kernel="5.15.0", platform="lxc")


@machine
def lxc_v2_payload() -> Machine:
    path = "/lxc.payload.web/system.slice/app.service"
    groups = (
        v2_group(f"{_V2}{path}", limit="max", usage=100 * MIB),
        v2_group(f"{_V2}/lxc.payload.web/system.slice", limit="max", usage=200 * MIB),
        v2_group(f"{_V2}/lxc.payload.web", limit=GIB, usage=700 * MIB),
        {"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"},
    )
    files = _on_v2(path, v2_mount(), *groups)
    expect = expect_cgroup(files, f"{_V2}/lxc.payload.web", limit_bytes=GIB, version=2)
    return built("a service inside of an LXC container on v2", files, expect, platform="lxc")


# --- platforms -------------------------------------------------------------------------------------


@machine
def fargate_v1() -> Machine:
    """The task's limit stands on a cgroup above the one that the container can see."""
    path = f"/ecs/{_ID[:32]}/{_ID[:32]}-1122334455"
    files = _on_v1(v1_paths(path), v1_mount(path), v1_group(_V1, limit=NO_V1_LIMIT, hierarchical=GIB))
    environ = {
        "ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/x",
        "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE",
    }
    expect = expect_cgroup(files, _V1, limit_bytes=GIB, version=1, source="/sys/fs/cgroup/memory/memory.stat")
    about = "Fargate: no limit on the container, the task's is only seen in hierarchical_memory_limit"
    return built(about, files, expect, kernel="4.14.0", platform="ecs", environ=environ)


@machine
def ecs_on_ec2_by_path() -> Machine:
    path = f"/ecs/web/{_ID[:32]}/{_ID}"
    files = _on_v1(v1_paths(path), v1_mount(path), v1_group(_V1, limit=512 * MIB))
    expect = expect_cgroup(files, _V1, limit_bytes=512 * MIB, version=1)
    about = "ECS on EC2, recognised by its path alone"
    return built(about, files, expect, kernel="4.14.0", platform="ecs")


@machine
def lambda_vm() -> Machine:
    files = {**process(total_mib=640), "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": _SYS}
    environ = {"AWS_LAMBDA_FUNCTION_NAME": "resize", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512"}
    expect = {
        **expect_machine(files),
        "limit_bytes": 512 * MIB,
        "limit_kind": "platform",
        "limit_source": "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    }
    return built(
        "Lambda of 512 MB in a somewhat larger VM",
        files,
        expect,
        kernel="5.10.0",
        platform="lambda",
        environ=environ,
    )


@machine
def fly_vm() -> Machine:
    files = {**process(total_mib=229), "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": _SYS}
    environ = {"FLY_APP_NAME": "web", "FLY_MACHINE_ID": "148ed", "FLY_VM_MEMORY_MB": "256"}
    about = "Fly, 256 MB: the VM has a little less, and that is the limit"
    return built(about, files, expect_machine(files), kernel="5.15.98", platform="fly", environ=environ)


@machine
def fly_vm_with_empty_v2() -> Machine:
    """The VM's init mounts cgroup2; the process is in its root, which has no limit files."""
    files = _on_v2("/", v2_mount(), total_mib=979)
    files["sys/fs/cgroup/cgroup.controllers"] = "cpuset cpu io memory pids\n"
    files["sys/fs/cgroup/memory.stat"] = "anon 1000\nfile 1000\n"
    environ = {"FLY_APP_NAME": "web", "FLY_VM_MEMORY_MB": "1024"}
    expect = expect_machine(files, cgroup_version=2)
    return built("Fly, 1 GB, with cgroup2 mounted", files, expect, kernel="6.1.9", platform="fly", environ=environ)


@machine
def render() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=512 * MIB), total_mib=31744)
    environ = {"RENDER": "true", "RENDER_SERVICE_ID": "srv-1", **_KUBE}
    expect = expect_cgroup(files, _V2, limit_bytes=512 * MIB, version=2)
    return built("Render starter, which is Kubernetes underneath", files, expect, platform="render", environ=environ)


@machine
def heroku() -> Machine:
    files = _on_v1(v1_paths("/"), v1_mount(), v1_group(_V1, limit=512 * MIB), total_mib=63488)
    expect = expect_cgroup(files, _V1, limit_bytes=512 * MIB, version=1)
    return built("Heroku standard-1x", files, expect, kernel="5.4.0", platform="heroku", environ={"DYNO": "web.1"})


@machine
def cloud_run_gvisor() -> Machine:
    """gVisor shows few files: limit and usage, no memory.stat; what of the usage is cache cannot be known."""
    files = {
        **process(total_mib=1024),
        "proc/self/cgroup": v1_paths("/"),
        "proc/self/mountinfo": (
            "1 1 0:1 / / rw - 9p none rw\n2 1 0:2 / /sys/fs/cgroup rw - tmpfs none rw\n"
            "3 2 0:3 / /sys/fs/cgroup/memory rw - cgroup none rw,memory\n"
        ),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{100 * MIB}\n",
    }
    del files["proc/pressure/memory"]
    expect = {
        "limit_bytes": 512 * MIB,
        "limit_kind": "cgroup",
        "limit_source": f"{_V1}/memory.limit_in_bytes",
        "used_bytes": 100 * MIB,
        "used_low_bytes": None,
        "cgroup_version": 1,
    }
    environ = {"K_SERVICE": "web", "K_REVISION": "web-00001-abc", "PORT": "8080"}
    return built("Cloud Run on gVisor, 512 MiB", files, expect, kernel="4.4.0", platform="cloud-run", environ=environ)


@machine
def cloud_run_job() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB))
    expect = expect_cgroup(files, _V2, limit_bytes=GIB, version=2)
    return built(
        "a Cloud Run job, second generation",
        files,
        expect,
        platform="cloud-run",
        environ={"CLOUD_RUN_JOB": "nightly"},
    )


@machine
def app_engine() -> Machine:
    files = {**process(total_mib=2048), "proc/self/cgroup": "", "proc/self/mountinfo": _SYS}
    environ = {"GAE_ENV": "standard", "GAE_INSTANCE": "00c61b", "GAE_MEMORY_MB": "384"}
    expect = {
        **expect_machine(files),
        "limit_bytes": 384 * MIB,
        "limit_kind": "platform",
        "limit_source": "GAE_MEMORY_MB",
    }
    return built("App Engine standard, F2", files, expect, platform="app-engine", environ=environ)


@machine
def railway() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=8 * GIB))
    expect = expect_cgroup(files, _V2, limit_bytes=8 * GIB, version=2)
    return built("Railway", files, expect, platform="railway", environ={"RAILWAY_ENVIRONMENT": "production"})


@machine
def azure_app_service() -> Machine:
    files = _on_v1(v1_paths(f"/docker/{_ID}"), v1_mount(f"/docker/{_ID}"), v1_group(_V1, limit=1792 * MIB))
    expect = expect_cgroup(files, _V1, limit_bytes=1792 * MIB, version=1)
    environ = {"WEBSITE_INSTANCE_ID": "0d1f"}
    return built("Azure App Service for containers", files, expect, platform="azure-app-service", environ=environ)


@machine
def platform_variable_beside_a_cgroup() -> Machine:
    """A variable is a promise, the cgroup is the fact."""
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB))
    expect = expect_cgroup(files, _V2, limit_bytes=GIB, version=2)
    environ = {"AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512"}
    return built(
        "a platform's variable lower than a visible cgroup limit",
        files,
        expect,
        platform="lambda",
        environ=environ,
    )


@machine
def platform_variable_that_is_no_number() -> Machine:
    files = {**process(total_mib=512), "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": _SYS}
    environ = {"FLY_APP_NAME": "web", "FLY_VM_MEMORY_MB": "lots"}
    return built(
        "a platform's variable with nonsense in it",
        files,
        expect_machine(files),
        platform="fly",
        environ=environ,
    )


# --- systems and kernels ---------------------------------------------------------------------------


@machine
def alpine_musl() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=192 * MIB, usage=60 * MIB))
    files["etc/alpine-release"] = "3.20.1\n"
    expect = expect_cgroup(files, _V2, limit_bytes=192 * MIB, version=2)
    return built("Alpine with musl in a container", files, expect, kernel="6.6.31")


@machine
def systemd_user_session() -> Machine:
    user = "/user.slice/user-1000.slice"
    path = f"{user}/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope"
    groups = (
        v2_group(f"{_V2}{path}", limit="max", usage=80 * MIB),
        v2_group(f"{_V2}{user}", limit=2 * GIB, usage=900 * MIB, high=1900 * MIB),
        v2_group(f"{_V2}/user.slice", limit="max", usage=5 * GIB),
        {"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"},
    )
    files = _on_v2(path, v2_mount(), *groups)
    expect = expect_cgroup(files, f"{_V2}{user}", limit_bytes=2 * GIB, version=2)
    return built("a terminal in a desktop session with MemoryMax on the user's slice", files, expect)


@machine
def systemd_hybrid_v1() -> Machine:
    path = "/system.slice/web.service"
    groups = (
        v1_group(f"{_V1}{path}", limit=700 * MIB),
        v1_group(f"{_V1}/system.slice", limit=NO_V1_LIMIT, usage=3 * GIB),
        v1_group(_V1, limit=NO_V1_LIMIT, usage=9 * GIB),
        {"sys/fs/cgroup/unified/cgroup.controllers": "\n"},
    )
    mounts = v1_mount() + v2_mount(point="/sys/fs/cgroup/unified", mount_id=40)
    files = _on_v1(v1_paths(path, unified=path), mounts, *groups)
    expect = expect_cgroup(files, f"{_V1}{path}", limit_bytes=700 * MIB, version=1)
    return built("systemd in hybrid mode: MemoryLimit on a service", files, expect, kernel="4.19.0")


@machine
def wsl2() -> Machine:
    mounts = v1_mount() + v2_mount(point="/sys/fs/cgroup/unified", mount_id=40)
    files = _on_v1(v1_paths("/", unified="/"), mounts, v1_group(_V1, limit=NO_V1_LIMIT), total_mib=7900)
    files["sys/fs/cgroup/unified/cgroup.controllers"] = "\n"
    expect = expect_machine(files, cgroup_version=1)
    return built("WSL2: hybrid, no limit", files, expect, kernel="5.15.153.1-microsoft-standard-WSL2")


@machine
def cgroup_disable_memory() -> Machine:
    """`cgroup_disable=memory` on the kernel's command line, the default of Raspberry Pi OS."""
    files = _on_v1("5:devices:/\n3:cpu,cpuacct:/\n1:name=systemd:/init.scope\n0::/init.scope\n", "")
    files["proc/self/mountinfo"] = _SYS + v2_mount(point="/sys/fs/cgroup/unified", mount_id=40)
    files["sys/fs/cgroup/unified/cgroup.controllers"] = "cpu io pids\n"
    return built("a kernel without the memory controller", files, expect_machine(files), kernel="5.15.84-v8+")


@machine
def vm_without_cgroups() -> Machine:
    files = {**process(total_mib=2048), "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": _SYS}
    return built("a small VM where nobody mounted cgroups", files, expect_machine(files))


@machine
def kernel_without_psi() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB))
    del files["proc/pressure/memory"]
    expect = expect_cgroup(files, _V2, limit_bytes=GIB, version=2)
    return built("a kernel without CONFIG_PSI", files, expect, kernel="4.19.0")


@machine
def kernel_without_file_keys_in_stat() -> Machine:
    """The first v2 kernels told anon and file only; what can be reclaimed is not known."""
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB, usage=300 * MIB))
    files["sys/fs/cgroup/memory.stat"] = f"anon {200 * MIB}\nfile {100 * MIB}\n"
    expect = {
        "limit_bytes": GIB,
        "limit_kind": "cgroup",
        "limit_source": f"{_V2}/memory.max",
        "used_bytes": 300 * MIB,
        "used_low_bytes": None,
        "cgroup_version": 2,
    }
    return built("an old v2 kernel whose memory.stat lacks inactive_file", files, expect, kernel="4.5.0")


@machine
def kernel_v1_without_dirty_in_stat() -> Machine:
    """total_dirty came with 4.2: nothing is known to be dirty."""
    files = _on_v1(v1_paths("/"), v1_mount(), v1_group(_V1, limit=GIB))
    lines = files[f"{_V1[1:]}/memory.stat"].splitlines(keepends=True)
    files[f"{_V1[1:]}/memory.stat"] = "".join(line for line in lines if "dirty" not in line)
    expect = expect_cgroup(files, _V1, limit_bytes=GIB, version=1)
    return built("v1 of 3.10, memory.stat without the dirty keys", files, expect, kernel="3.10.0")


@machine
def kernel_v1_without_hierarchical_limit() -> Machine:
    files = _on_v1(v1_paths("/a/b"), v1_mount(), v1_group(f"{_V1}/a/b", limit=600 * MIB))
    files |= v1_group(f"{_V1}/a", limit=500 * MIB, usage=400 * MIB) | v1_group(_V1, limit=NO_V1_LIMIT)
    for name in ("a/b/", "a/", ""):
        path = f"{_V1[1:]}/{name}memory.stat"
        lines = files[path].splitlines(keepends=True)
        files[path] = "".join(line for line in lines if not line.startswith("hierarchical"))
    expect = expect_cgroup(files, f"{_V1}/a", limit_bytes=500 * MIB, version=1)
    return built(
        "v1 whose memory.stat has no hierarchical_memory_limit: the walk must find it",
        files,
        expect,
        kernel="3.2.0",
    )


@machine
def kernel_v1_without_use_hierarchy() -> Machine:
    """memory.rst section 6: without use_hierarchy the parent's limit does not bind its children."""
    files = _on_v1(v1_paths("/a/b"), v1_mount())
    files |= v1_group(f"{_V1}/a/b", limit=600 * MIB, use_hierarchy=0)
    files |= v1_group(f"{_V1}/a", limit=100 * MIB, usage=50 * MIB, use_hierarchy=0)
    files |= v1_group(_V1, limit=NO_V1_LIMIT, use_hierarchy=0)
    expect = expect_cgroup(files, f"{_V1}/a/b", limit_bytes=600 * MIB, version=1)
    return built("v1 with use_hierarchy 0: a tighter ancestor does not bind", files, expect, kernel="4.4.0")


@machine
def v1_no_limit_on_large_pages() -> Machine:
    """With pages of 64 KiB "no limit" is 2**63 - 1 rounded down to 64 KiB."""
    limit = (1 << 63) - (1 << 16)
    files = _on_v1(v1_paths("/web"), v1_mount(), v1_group(f"{_V1}/web", limit=limit), v1_group(_V1, limit=limit))
    expect = expect_machine(files, cgroup_version=1)
    return built("v1 without a limit on a kernel with 64 KiB pages", files, expect, kernel="5.10.0 aarch64")


@machine
def v1_no_limit() -> Machine:
    files = _on_v1(
        v1_paths("/web"),
        v1_mount(),
        v1_group(f"{_V1}/web", limit=NO_V1_LIMIT),
        v1_group(_V1, limit=NO_V1_LIMIT),
    )
    return built(
        "v1 without a limit: 9223372036854771712",
        files,
        expect_machine(files, cgroup_version=1),
        kernel="5.4.0",
    )


@machine
def meminfo_without_available() -> Machine:
    """MemAvailable came with 3.14: the nearest upper bound then is what is neither free nor cache."""
    files = {**process(total_mib=4096), "proc/self/cgroup": "", "proc/self/mountinfo": _SYS}
    whole = expect_machine(files)
    lines = files["proc/meminfo"].splitlines(keepends=True)
    files["proc/meminfo"] = "".join(line for line in lines if "MemAvailable" not in line)
    expect = {**whole, "used_bytes": whole["used_low_bytes"]}
    return built("a kernel before 3.14: no MemAvailable", files, expect, kernel="3.2.0")


@machine
def rlimit_as_without_cgroups() -> Machine:
    """`ulimit -v` on a shared host."""
    files = {**process(rlimit_as=str(GIB)), "proc/self/cgroup": "", "proc/self/mountinfo": _SYS}
    expect = expect_rlimit(files, name="RLIMIT_AS", limit_bytes=GIB, version=None)
    return built("an address space limit and no cgroup", files, expect)


@machine
def rlimit_data_larger_than_the_cgroup() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=GIB), rlimit_data=str(2 * GIB))
    expect = expect_cgroup(files, _V2, limit_bytes=GIB, version=2)
    return built("RLIMIT_DATA above the cgroup's limit", files, expect)


# --- damage and oddities ---------------------------------------------------------------------------


@machine
def no_mountinfo() -> Machine:
    files = _on_v2("/web", "", v2_group(f"{_V2}/web", limit=512 * MIB))
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu io memory pids\n"
    del files["proc/self/mountinfo"]
    expect = expect_cgroup(files, f"{_V2}/web", limit_bytes=512 * MIB, version=2)
    return built("mountinfo is not there: the usual place is", files, expect)


@machine
def empty_cgroup_file() -> Machine:
    files = _on_v2("/", v2_mount(), v2_group(_V2, limit=512 * MIB))
    files["proc/self/cgroup"] = ""
    return built("an empty /proc/self/cgroup: nothing says that what is mounted is ours", files, expect_machine(files))


@machine
def cgroup_folder_vanished() -> Machine:
    files = _on_v2("/app/job-17/worker", v2_mount(), v2_group(f"{_V2}/app", limit=512 * MIB))
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu io memory pids\n"
    expect = expect_cgroup(files, f"{_V2}/app", limit_bytes=512 * MIB, version=2)
    return built("the own cgroup is gone from the tree, its ancestor still binds", files, expect)


@machine
def cgroup_deleted() -> Machine:
    """proc_cgroup_show() appends the word for a zombie whose cgroup was removed."""
    files = _on_v2("/app/job-17 (deleted)", v2_mount(), v2_group(f"{_V2}/app", limit=512 * MIB))
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu io memory pids\n"
    expect = expect_cgroup(files, f"{_V2}/app", limit_bytes=512 * MIB, version=2)
    return built('a removed cgroup: the path ends in " (deleted)"', files, expect)


@machine
def path_above_the_namespace() -> Machine:
    """cgroup_namespaces(7): a path outside of the reader's root begins with /.., and is not in sight."""
    files = _on_v2("/../..", v2_mount(), v2_group(_V2, limit=512 * MIB))
    expect = expect_cgroup(files, _V2, limit_bytes=512 * MIB, version=2)
    return built("0::/../.. as after nsenter into a container", files, expect)


@machine
def two_mounts_of_one_hierarchy() -> Machine:
    """A bind mount of a sub-tree for a monitoring agent, before the mount of the whole."""
    mounts = v2_mount("/agent", "/host/agent-cgroup", mount_id=29) + v2_mount()
    groups = (
        v2_group("/host/agent-cgroup", limit=64 * MIB, usage=20 * MIB),
        v2_group(f"{_V2}/web", limit=512 * MIB),
        {"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n"},
    )
    files = _on_v2("/web", mounts, *groups)
    expect = expect_cgroup(files, f"{_V2}/web", limit_bytes=512 * MIB, version=2)
    return built("two mounts of one hierarchy, only the second shows the own cgroup", files, expect)


@machine
def carriage_returns() -> Machine:
    """A folder that went through a tool which rewrites line ends."""
    files = _on_v2("/web", v2_mount(), v2_group(f"{_V2}/web", limit=512 * MIB))
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu io memory pids\n"
    expect = expect_cgroup(files, f"{_V2}/web", limit_bytes=512 * MIB, version=2)
    return built("every file with CRLF", {k: v.replace("\n", "\r\n") for k, v in files.items()}, expect)


@machine
def no_final_newlines() -> Machine:
    files = _on_v1(
        v1_paths("/web"),
        v1_mount(),
        v1_group(f"{_V1}/web", limit=512 * MIB),
        v1_group(_V1, limit=NO_V1_LIMIT),
    )
    expect = expect_cgroup(files, f"{_V1}/web", limit_bytes=512 * MIB, version=1)
    return built("no file ends in a newline", {k: v.rstrip("\n") for k, v in files.items()}, expect, kernel="5.4.0")


@machine
def limit_file_unreadable() -> Machine:
    """An empty memory.max is unknown, not zero; the ancestor's limit is known."""
    files = _on_v2("/a/b", v2_mount(), v2_group(f"{_V2}/a/b", limit=""), v2_group(f"{_V2}/a", limit=512 * MIB))
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu io memory pids\n"
    expect = expect_cgroup(files, f"{_V2}/a", limit_bytes=512 * MIB, version=2)
    return built("an empty memory.max below one that says 512 MiB", files, expect)


@machine
def nothing_at_all() -> Machine:
    expect = {
        "limit_bytes": None,
        "limit_kind": "machine",
        "limit_source": "",
        "used_bytes": None,
        "used_low_bytes": None,
    }
    return built("a folder with nothing to read: unknown, not zero", {"proc/self/stat": ""}, expect, kernel="unknown")


def main(folder: str) -> int:
    """Write them all."""
    for name, recipe in MACHINES.items():
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="ascii") as file:
            json.dump(recipe(), file, indent=1)
            file.write("\n")
    print(f"{len(MACHINES)} machines")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
