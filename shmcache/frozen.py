"""Dicts and lists that refuse to be changed, so that a record handed out cannot damage the cache.

They are real dicts and lists: `isinstance`, `json.dumps`, msgpack and equality work as usual. `thaw` gives a deep,
changeable copy to whoever needs one.
"""

from __future__ import annotations

from typing import Any, NoReturn


def _refuse(*_arguments: object, **_keywords: object) -> NoReturn:
    raise TypeError("this value belongs to a cached record and cannot be changed: take shmcache.frozen.thaw(value)")


class FrozenDict(dict[str, Any]):
    """A dict whose every changing method raises TypeError."""

    __slots__ = ()
    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __deepcopy__(self, _memo: object) -> Any:
        return thaw(self)


class FrozenList(list[Any]):
    """A list whose every changing method raises TypeError."""

    __slots__ = ()
    __setitem__ = __delitem__ = append = extend = insert = pop = remove = clear = _refuse
    sort = reverse = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)

    def __deepcopy__(self, _memo: object) -> Any:
        return thaw(self)


_CONTAINERS = (dict, list, tuple)
# Most values hold nothing but these: one call that walks their types takes a quarter of the time of asking each.
_all_plain = frozenset({str, int, float, bool, type(None)}).issuperset


def freeze(value: Any) -> Any:
    """Return a deep copy of a JSON-like value that cannot be changed; tuples become lists."""
    if isinstance(value, dict):
        if _all_plain(map(type, value.values())):
            return FrozenDict(value)
        # Asked here, not in a call of its own for each item: most items are plain, and a call is most of the work.
        return FrozenDict({
            key: freeze(item) if isinstance(item, _CONTAINERS) else item for key, item in value.items()
        })  # fmt: skip
    if isinstance(value, (list, tuple)):
        if _all_plain(map(type, value)):
            return FrozenList(value)
        return FrozenList([freeze(item) if isinstance(item, _CONTAINERS) else item for item in value])
    return value


def thaw(value: Any) -> Any:
    """Return a deep, changeable copy of a value."""
    if isinstance(value, dict):
        if _all_plain(map(type, value.values())):
            return dict(value)
        return {key: thaw(item) if isinstance(item, _CONTAINERS) else item for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if _all_plain(map(type, value)):
            return list(value)
        return [thaw(item) if isinstance(item, _CONTAINERS) else item for item in value]
    return value
