"""Content keys: what is hashed, on which threads, and what a file's key stands for."""

from vitcache.keys.aliases import Alias, KeyAliases
from vitcache.keys.content import Namespace, content_key
from vitcache.keys.threads import KeyedFeature, KeyThreads

__all__ = ["Alias", "KeyAliases", "KeyThreads", "KeyedFeature", "Namespace", "content_key"]
