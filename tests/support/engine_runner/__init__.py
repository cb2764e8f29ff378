"""Runs real engines for `make engines`: each engine in a process of its own, two at a time.

`cases` lists the engines, `child` is the program of one engine, `pool` starts the children, `server` starts
`vllm serve`, `bench` runs a bench. Only `child` imports vLLM.
"""
