"""Uses an installed vitcache as a new user does. tests/install/run.sh runs it in an empty folder.

The environment has only the packages of `vitcache[demo]`: no pytest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions, requires
from pathlib import Path

BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    """Run a command; print and return its output."""
    print("$", *(Path(command[0]).name, *command[1:]), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    expect(done.returncode == 0, f"the command ended with {done.returncode}")
    return done.stdout


def expect(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"tests/install/use.py: {message}")


def check_command_line(version: str) -> None:
    vitcache = str(BIN / "vitcache")
    expect(run(vitcache, "--version").split()[-1] == version, f"expected version {version}")
    run(vitcache, "info")
    run(vitcache, "demo", "--size", "tiny", "--turns", "2", "--json", "demo.json", "--plot", "demo.png")
    rows = json.loads(Path("demo.json").read_text())["rows"]
    counts = [(row["encoded_stock"], row["encoded"], row["hits"], row["hits_attach"]) for row in rows]
    expect(counts == [(1, 1, 0, 0), (2, 1, 1, 1)], f"the demo counted {counts}")
    expect(all(row["equal"] for row in rows), "the demo's logits differ")
    expect(Path("demo.png").read_bytes().startswith(b"\x89PNG"), "the demo did not write a PNG file")


def check_packages() -> None:
    """No package is missing, and Triton is installed only if torch needs it."""
    run(sys.executable, "-m", "pip", "check")
    installed = {found.metadata["Name"].lower() for found in distributions()}
    needed = any(need.startswith("triton") for need in requires("torch") or [])
    expect("triton" not in installed or needed, "triton is installed, and torch does not need it")


def check_attach() -> None:
    """A model of transformers encodes an image once, and gives the same rows again."""
    import torch

    import vitcache
    from vitcache.demo.families import FAMILIES
    from vitcache.demo.turns import build

    expect(
        not Path(str(vitcache.__file__)).is_relative_to(Path(__file__).parents[2] / "vitcache"), "checkout"
    )
    model = build(FAMILIES["qwen3_vl"], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    image = {
        "pixel_values": torch.randn(16, 3 * 2 * 16 * 16, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    attachment = vitcache.attach(model)
    with torch.no_grad():
        first, second = (model.model.get_image_features(**image).pooler_output[0] for _ in range(2))
    stats = attachment.stats()
    attachment.detach()
    print(f"attach: {stats}")
    expect((stats.encoded, stats.hits) == (1, 1), "the image was not encoded once")
    expect(bool(torch.equal(first, second)), "the rows of the hit differ")


if __name__ == "__main__":
    check_packages()
    check_attach()
    check_command_line(sys.argv[1])
