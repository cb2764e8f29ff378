"""The optional packages: their names at PyPI and the extras that install them."""

from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

from vitcache.__main__ import main
from vitcache.extras import EXTRAS, install_command, package_of


def test_extras_install_the_packages_that_the_messages_name():
    installed = {extra: set() for extra in EXTRAS}
    for need in map(Requirement, requires("vitcache")):
        for extra, names in installed.items():
            if need.marker is not None and need.marker.evaluate({"extra": extra}):
                names.add(need.name)
    # The demo runs models of transformers, whose packages have an extra of their own.
    assert installed == {extra: {*names} for extra, names in EXTRAS.items()} | {
        "demo": {"transformers", *EXTRAS["demo"]}
    }


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("skimage.data", "scikit-image"),
        ("sklearn", "scikit-learn"),
        ("PIL.Image", "pillow"),
        ("mooncake.store", "mooncake-transfer-engine-non-cuda"),
        ("rich", "rich"),
    ],
)
def test_package_of_a_module_is_its_name_at_pypi(module, package):
    assert package_of(module) == package


@pytest.mark.parametrize("package", [package for packages in EXTRAS.values() for package in packages])
def test_install_command_of_an_optional_package_names_its_extra(package):
    extra = install_command(package).removeprefix("pip install 'vitcache[").removesuffix("]'")
    assert package in EXTRAS[extra]


def test_install_command_of_another_package_names_the_package():
    assert install_command("timm") == "pip install timm"


def test_demo_without_its_packages_names_them_as_pip_does_and_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("vitcache.demo.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert all(package in message for package in ("scikit-image", "scikit-learn", "pillow"))
    assert not any(module in message for module in ("skimage", "sklearn", "PIL"))
    assert message.endswith("run: pip install 'vitcache[demo]'\n")
