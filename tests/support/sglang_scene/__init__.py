"""Steps of the released SGLang in one process: a language model, a tower, prompts, and a plain truth."""
