"""Whether the weights of a scheduler are still those that it has loaded at its start.

This module imports nothing heavy, because `hooks` imports it: weights can change before the first step.
"""

from __future__ import annotations


class LoadedWeights:
    """The state of the weights of this process. SGLang's scheduler thread uses it.

    Attributes
    ----------
    are_original
        Whether the operator's name of the weights still names them. After an update or a flush, it does not,
        and a cache that is made later gets a random name.
    """

    def __init__(self) -> None:
        self.are_original = True


LOADED = LoadedWeights()
