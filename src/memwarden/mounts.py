"""What kind of file system a folder is on: locks and shared memory of a network's are not to be relied on."""

from __future__ import annotations

# As /proc/self/mountinfo names them. SQLite's write-ahead log needs shared memory, so "all processes must be on the
# same host" (sqlite.org/wal.html); locks are slow, or nobody's, or kept by a server that may be gone.
NETWORK = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs",
        "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys",
        "fuse.juicefs",
    }
)  # fmt: skip
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


def file_system(mountinfo: bytes, folder: str) -> str:
    """The type of the file system that a real path is on (proc_pid_mountinfo(5)); "" where it cannot be told."""
    best, kind = -1, ""
    for line in mountinfo.decode("utf-8", "surrogateescape").splitlines():
        # "36 35 98:0 /root /mount-point options - type source options"; a later mount hides an earlier one.
        head, _, tail = line.partition(" - ")
        words = head.split()
        if len(words) < 5 or not tail.split():
            continue
        point = words[4]
        for escaped, meant in _ESCAPES:
            point = point.replace(escaped, meant)
        point = point.rstrip("/")
        if (folder == point or folder.startswith(f"{point}/")) and len(point) >= best:
            best, kind = len(point), tail.split()[0]
    return kind
