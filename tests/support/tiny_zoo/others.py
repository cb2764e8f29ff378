"""The members of the zoo whose calls have other forms than patches with a grid or images of one size."""

from __future__ import annotations

from tiny_zoo.aria import ARIA
from tiny_zoo.fuyu import FUYU
from tiny_zoo.gemma3n import GEMMA3N
from tiny_zoo.gemma4 import GEMMA4
from tiny_zoo.granite_docling import GRANITE_DOCLING
from tiny_zoo.idefics import IDEFICS
from tiny_zoo.lfm2 import LFM2
from tiny_zoo.llama4 import LLAMA4
from tiny_zoo.minicpm import MINICPM
from tiny_zoo.molmo2 import MOLMO2
from tiny_zoo.ocr import OCR
from tiny_zoo.ovis2 import OVIS2
from tiny_zoo.zoo_model import ZooModel

OTHERS: list[ZooModel] = [
    *GEMMA3N,
    *GEMMA4,
    *IDEFICS,
    *MINICPM,
    *LFM2,
    *OVIS2,
    *LLAMA4,
    *ARIA,
    *MOLMO2,
    *OCR,
    *FUYU,
    *GRANITE_DOCLING,
]
