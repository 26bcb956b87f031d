"""Bounded processing: big data through small memory."""
