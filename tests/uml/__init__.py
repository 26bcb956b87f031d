"""A second kernel as a plain process: cgroup v2 for real on any machine. See `kernel.run_in_uml`."""
