"""Engines of vLLM for the bench `engines`: a small model, one step without an engine, and child processes.

`tiny_model` writes the model, `requests` has the conversation, `step_scene` calls the step of Model Runner V2
that builds `inputs_embeds`. `child` is the program of one engine, `start` starts it. Only `step_scene`,
`child` and `meter` import vLLM.
"""
