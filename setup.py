"""The optional C parts: `pip install` goes on without them where there is no compiler."""

import sys

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            f"memwarden._native.{name}",
            [f"src/memwarden/_native/{name}.c"],
            optional=True,
            extra_compile_args=["-O2", "-std=c11"],
        )
        for name in ("_reader", "_sizes", "_heap", "_vigil")
    ]
    if sys.platform.startswith("linux")
    else []
)
