"""One step of SGLang without an engine, for the bench `sglang`; engines of SGLang, for `sglang_chat`.

`scene` has a request, `models` a language model and a tower that compute nothing, `turns` makes SGLang's
objects of the request, and `sides` calls SGLang's `general_mm_embed_routine` with and without the hooks of
vitcache. The modules `chat_*`, `meter` and `plug_ins` are of the bench `sglang_chat`, whose engines run in
processes of their own. All modules can be imported without SGLang: their functions import it.
"""
