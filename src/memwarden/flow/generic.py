"""`class Pool(Generic[T])` without `typing`, which would cost its importer half a mebibyte for nothing at run time."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic, ParamSpec, TypeVar

    T = TypeVar("T")
    P = ParamSpec("P")
    K = TypeVar("K")
    V = TypeVar("V")
else:
    T = P = K = V = None

    class Generic:
        """Every subscription of it, or of a subclass, is that class."""

        __slots__ = ()

        def __class_getitem__(cls, _item):  # noqa: ANN001, ANN204  the types are typing's, above
            return cls


__all__ = ["Generic", "K", "P", "T", "V"]
