"""One file for each third party: memory-aware jobs on Celery, RQ, Dramatiq and Dask.

Nothing is imported here: `from memwarden.integrations.celery import Jobs` loads what it names, and a missing extra is
a MissingExtraError then. What the adapters have in common, and what of it needs no third party, is in `keeper`.
"""
