"""`InvalidateCallback`: tells attachments that a `Trainer` of transformers wrote their weights."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from vitcache.adapters.transformers import Attachment


class InvalidateCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """A callback of transformers' `Trainer`: after each step, attachments use no earlier entry again.

    `attach` notices the steps of torch's optimizers without it. The callback is for steps that write weights
    in another way, for example from master copies as DeepSpeed does.

    It invalidates the attachments at the beginning of the training, after each step of the optimizer, at the
    end of each step, when other callbacks may have written weights, and at the end of the training, after the
    best checkpoint was loaded. It keeps the entries of an attachment if no weight outside of the language
    model requires gradients at that time. The callback keeps the attachments alive. It runs in the thread of
    the training.

    Parameters
    ----------
    attachments
        The attachments of the models that the `Trainer` changes.

    Raises
    ------
    TypeError
        If no attachment is given, or an object that is not an `Attachment`.
    ModuleNotFoundError
        At the first use of the name `vitcache.InvalidateCallback`, if transformers is not installed.

    Examples
    --------
    `model` is a Qwen2.5-VL. With a `Trainer`, give it the callback:
    ``Trainer(model, arguments, callbacks=[vitcache.InvalidateCallback(attachment)], ...)``.

    >>> import vitcache
    >>> attachment = vitcache.attach(model)
    >>> callback = vitcache.InvalidateCallback(attachment)
    >>> callback.on_step_end(None, None, None)  # `Trainer` calls it
    >>> attachment.stats().changes
    {'invalidate was called': 1}
    >>> _ = model.model.visual.requires_grad_(False)
    >>> callback.on_step_end(None, None, None)  # a frozen vision tower keeps its entries
    >>> attachment.stats().changes
    {'invalidate was called': 1}
    >>> attachment.detach()
    """

    def __init__(self, *attachments: Attachment) -> None:
        if not attachments:
            raise TypeError("InvalidateCallback needs an attachment, which attach returns")
        for attachment in attachments:
            if not isinstance(attachment, Attachment):
                raise TypeError(f"attachments must be of type Attachment, got {type(attachment).__name__}")
        self._attachments = attachments

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Invalidate the attachments whose models have a trainable weight outside of the language model."""
        for attachment in self._attachments:
            if attachment._session.is_trainable():
                attachment.invalidate()

    on_optimizer_step = on_step_end = on_train_end = on_train_begin
