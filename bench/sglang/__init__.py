"""One step of SGLang that builds `inputs_embeds`, without an engine, for the bench `sglang`.

`scene` has a request, `models` a language model and a tower that compute nothing, `turns` makes SGLang's
objects of the request, and `sides` calls SGLang's `general_mm_embed_routine` with and without the hooks of
vitcache. All modules can be imported without SGLang: their functions import it.
"""
