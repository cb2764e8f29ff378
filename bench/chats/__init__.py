"""Chats, their models, and the methods of other projects that vitcache is compared with."""
