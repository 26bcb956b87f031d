"""The service: one process per folder that does what guarded processes are too small, or too dead, to do.

- `boxes`: follows the ticks of every black box in the run folder, living and dead.
- `fold`: ticks into buckets; pure.
- `history`: the tiers of buckets, in a file of their own with a cap.
- `machine`: memory of the machine as a whole, judged.
- `service`: the loop. It delivers the outbox (`memwarden.tell`), takes what guarded processes left in the slots of
  their black boxes, and tells of those that were killed.
- `beside`: how `memwarden run --serve` starts one.

It needs no rights but those of the user whose processes it serves, opens no socket, and its files are 0600.
"""
