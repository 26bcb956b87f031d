"""The optional C reader: `pip install` goes on without it where there is no compiler."""

import sys

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "memwarden._native._reader",
            ["src/memwarden/_native/_reader.c"],
            optional=True,
            extra_compile_args=["-O2", "-std=c11"],
        )
    ]
    if sys.platform.startswith("linux")
    else []
)
