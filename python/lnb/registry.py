"""What a setting's values name: one object each, which users may add to."""

from __future__ import annotations

from typing import Generic, TypeVar

Named = TypeVar("Named")


class Registry(Generic[Named]):
    """The objects of one kind by their names.

    Args:
        argument: what errors call a new object: the name of the argument of ``register``.
        kind: the class of all.
        path: where users find that class.
    """

    def __init__(self, argument: str, kind: type[Named], path: str) -> None:
        self._argument, self._kind, self._path = argument, kind, path
        self.known: dict[str, Named] = {}

    def add(self, entry: Named) -> None:
        """Make an object known by its ``name``; one of the same class takes the place of the former.

        Raises:
            TypeError: it is not of the kind.
            ValueError: its name is no text, or an object of another class has it.
        """
        if not isinstance(entry, self._kind):
            raise TypeError(f"register: {self._argument}={entry!r} must be an instance of {self._path}")
        name = getattr(entry, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"register: name={name!r} of {type(entry).__name__} must be a text that is not empty")
        if name in self.known and type(self.known[name]) is not type(entry):
            raise ValueError(f"register: name={name!r} is taken by {type(self.known[name]).__name__}; choose another")
        self.known[name] = entry
