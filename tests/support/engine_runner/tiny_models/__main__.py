"""Writes the model of one family, and the same model with other weights if a test loads these."""

import sys
from pathlib import Path

from engine_runner.tiny_models import FAMILIES
from engine_runner.tiny_models.folder import make_model

family, folder = FAMILIES[sys.argv[1]], Path(sys.argv[2])
if family.has_other_weights:
    make_model(family, Path(f"{folder}-other"), family.seed + 1)
make_model(family, folder, family.seed)
