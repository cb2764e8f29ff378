"""`Conversation`: the KV cache of one conversation, and the transcript of the tokens in it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vitcache.adapters.prefill_step import PrefillModel
from vitcache.adapters.transcript import NextPrompt, Transcript
from vitcache.adapters.window_groups import Window
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.pipeline.items import Item


class Conversation:
    """The state between two prompts of one conversation.

    Attributes
    ----------
    model
        The model and the pipeline, which other conversations may use, too.
    kv
        The `DynamicCache` of the language model.
    num_cached
        Number of tokens of the last prompt that are in `kv`, counted from its beginning.
    prompt
        The last prompt that `accept` got since `reset`, or None.
    is_in_step
        Whether a step adds tokens to `kv`. It stays true if an exception ends the step: some layers, but not
        all, may have the tokens, so the next prompt begins with an empty KV cache.
    """

    def __init__(self, model: PrefillModel) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.num_cached = 0  # first: after an interrupt, no later prompt may rely on the KV cache
        self.prompt: NextPrompt | None = None
        self.kv = self.model.new_kv()
        self.transcript = Transcript(self.model.base)
        self.is_in_step = False

    __reduce_ex__ = refuse_copies("a copy would write to the same KV cache; make another `ChunkedPrefill`")

    @described
    def __repr__(self) -> str:
        return f"{describe_count(self.num_cached, 'token')} cached"

    def compare(self, input_ids: Tensor, items: Sequence[Item]) -> NextPrompt:
        """Check a prompt, and find the tokens that it has in common with the last one. Changes nothing."""
        return self.transcript.compare(input_ids, items, self.num_cached, self.model.pipeline.key)

    def accept(self, prompt: NextPrompt, input_ids: Tensor, items: Sequence[Item]) -> range:
        """Make the KV cache the common prefix with a prompt that `compare` returned for the same arguments.

        A KV cache that cannot remove tokens is emptied. Returns the tokens that must be run.
        """
        while not self._write(prompt):
            prompt = self.compare(input_ids, items)
        self.prompt = prompt
        return range(prompt.common, self.transcript.length)

    def _write(self, prompt: NextPrompt) -> bool:
        """Return False if `prompt` must be compared again: `kv` was emptied, or has another prompt."""
        if prompt.state is not self.transcript.state:  # a signal handler has run a prompt
            return False
        # First: an interrupt may leave a KV cache without the tokens that are removed below, and the caller
        # may then decode other tokens in their place.
        self.num_cached, self.prompt = prompt.common, None
        if self.is_in_step or not self._crop(prompt.common):
            self.reset()
            return False
        return self.transcript.write(prompt)

    def window(self, tokens: range) -> Window:
        """Return these tokens of the last prompt as a `Window`."""
        return Window(self.transcript, self.kv, tokens.start, tokens.stop)

    def check_current(self, prompt: NextPrompt | None, start: int) -> None:
        """Raise RuntimeError unless `prompt` is the last one, and its first `start` tokens are in `kv`."""
        if self.prompt is not prompt or self.num_cached != start:
            raise RuntimeError(
                f"the next chunk begins at token {start}, but another prompt was run or reset() was called "
                f"since the last chunk: the KV cache has {self.num_cached} tokens"
            )
        length = self.kv.get_seq_length()
        if length != start:
            raise RuntimeError(
                f"the next chunk begins at token {start}, but the KV cache has {length} tokens: the caller "
                "changed it since the last chunk"
            )

    def begin_step(self, prompt: NextPrompt | None, start: int) -> None:
        """Check as `check_current`, just before the language model adds tokens to `kv`; then call `end_step`.

        While a step is embedded, a signal handler may run another prompt.
        """
        self.check_current(prompt, start)
        self.is_in_step = True

    def end_step(self, prompt: NextPrompt | None, window: Window) -> None:
        """Note that all layers have the tokens of a window of `prompt`.

        Raises RuntimeError if another prompt was run since `begin_step`.
        """
        if self.prompt is not prompt or self.kv is not window.kv:
            raise RuntimeError(
                f"another prompt was run or reset() was called while the language model ran the tokens "
                f"{window.start} to {window.stop}"
            )
        self.num_cached, self.is_in_step = window.stop, False

    def _crop(self, num_tokens: int) -> bool:
        """Remove all but the first `num_tokens` tokens from the KV cache. Return False if that failed.

        The caller may have decoded with `kv`, so that it has more than `num_cached` tokens. Layers of linear
        attention, and those whose sliding window is full, cannot remove tokens: they raise.
        """
        surplus = self.kv.get_seq_length() - num_tokens
        if surplus == 0:
            return True
        if surplus < 0 or num_tokens == 0:
            return False
        try:
            self.kv.crop(-surplus)
        except Exception:
            return False
        except BaseException:
            self.reset()  # some layers, but not all, may have removed the tokens
            raise
        return bool(self.kv.get_seq_length() == num_tokens)
