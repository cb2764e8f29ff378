"""Runs real engines of SGLang for `make engines`, as `engine_runner` runs those of vLLM.

`cases` lists the engines, `child` is the program of one engine, `probe` has the plug-ins of the tests, which
SGLang loads beside vitcache's. Only `child` and `probe` import SGLang.
"""
