"""Keys: hashing of features and identifiers, hashing on threads, and aliases from files to content keys."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.keys.aliases import Alias, KeyAliases
    from vitcache.keys.content import content_key
    from vitcache.keys.identifiers import key_from_id
    from vitcache.keys.namespace import Namespace
    from vitcache.keys.threads import KeyedFeature, KeyThreads

__all__ = ["Alias", "KeyAliases", "KeyThreads", "KeyedFeature", "Namespace", "content_key", "key_from_id"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.keys.aliases": ("Alias", "KeyAliases"),
            "vitcache.keys.content": ("content_key",),
            "vitcache.keys.identifiers": ("key_from_id",),
            "vitcache.keys.namespace": ("Namespace",),
            "vitcache.keys.threads": ("KeyThreads", "KeyedFeature"),
        },
    )
