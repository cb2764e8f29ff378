"""Engines of vLLM for the bench `engines`: a small model, one step without an engine, and child processes.

`model_folder` writes the model, `conversation` has the requests. `step_scene` and `vitcache_step` call the
step of Model Runner V2 that builds `inputs_embeds`. `child` is the program of one engine, `start` starts it.
All other modules can be imported without vLLM, and so can `engine`, `meter` and `steps`: their functions
import it.
"""
