"""Telling people: rules, the engine that decides whom and when, the outbox, and the threads that deliver.

    signal -> black box -> engine and outbox (one transaction of the store) -> channel

- `signals`: what is told, small enough for a slot of the black box.
- `rules`: pure; from verdicts, findings, outcomes and deaths to signals.
- `engine`: pure; one state per key, and for each signal whom to tell, with a named reason either way.
- `outbox`: the tables in the store; each step of the engine, its event and its deliveries are one transaction.
- `sender`: the threads that take signals in, and deliver.
- `settings`: the `[alerts]` table of the settings file. `[alerts.channels.NAME]` is for `channels`.

Nothing here is loaded by a Warden without an `[alerts]` table.
"""
