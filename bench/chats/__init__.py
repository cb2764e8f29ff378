"""Chats and their models, and the ways of peers that they are measured against."""
