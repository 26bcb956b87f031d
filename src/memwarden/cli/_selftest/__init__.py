"""What `memwarden selftest` tries: real checks in throw-away processes, one table of them in `table`."""
