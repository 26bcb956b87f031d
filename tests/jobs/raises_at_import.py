"""A module that cannot be imported, and whose error is none of import."""

raise ValueError("a setting is missing")
