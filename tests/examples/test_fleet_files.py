"""compose.yaml and kubernetes.yaml of examples/fleet: schemas, flags, options, names. Nothing starts them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from doc_pages.commands import check_vllm
from fleet_files import FLEET, commands, compose, containers, flags_of, objects, objects_of
from schemas import ROOT, faults_of_compose, faults_of_object

from vitcache.adapters.vllm.settings import OPTIONS
from vitcache.arguments import to_bytes

COMMANDS = commands()
OF_MOONCAKE = [name for name, words in COMMANDS.items() if words[0].startswith("mooncake_")]
OF_VLLM = [name for name, words in COMMANDS.items() if words[0] == "vllm"]


def options_of(name: str) -> dict[str, Any]:
    """The options of vitcache in a command of vLLM."""
    words = COMMANDS[name]
    transfer = json.loads(words[words.index("--ec-transfer-config") + 1])
    return transfer["ec_connector_extra_config"]


def flag(words: list[str], name: str) -> str:
    """The value of a flag of Mooncake."""
    [value] = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return value


def test_compose_file_has_no_fault_by_the_schema_of_compose() -> None:
    assert faults_of_compose(compose()) == []


def test_manifest_has_no_fault_by_the_schemas_of_kubernetes() -> None:
    assert [f"{each['kind']}: {fault}" for each in objects() for fault in faults_of_object(each)] == []


def test_a_planted_fault_of_a_compose_file_is_found() -> None:
    content = compose()
    content["services"]["master"]["comand"] = ["mooncake_master"]
    assert any("comand" in fault for fault in faults_of_compose(content))


@pytest.mark.parametrize(
    ("field", "value"), [("replica", 2), ("replicas", "two"), ("template", {"spec": {"container": []}})]
)
def test_a_planted_fault_of_a_deployment_is_found(field: str, value: Any) -> None:
    deployment = objects_of("Deployment")["node"]
    deployment["spec"][field] = value
    assert faults_of_object(deployment) != []


def test_both_files_have_a_master_two_nodes_and_two_engines() -> None:
    programs = [COMMANDS[f"compose: {name}"][0] for name in compose()["services"]]
    assert programs == ["mooncake_master", "mooncake_client", "mooncake_client", "vllm", "vllm"]
    replicas = {name: each["spec"]["replicas"] for name, each in objects_of("Deployment").items()}
    assert replicas == {"master": 1, "node": 2, "engine": 2}


@pytest.mark.parametrize("name", OF_MOONCAKE)
def test_flags_of_a_program_of_mooncake_are_in_its_help(name: str) -> None:
    program, *flags = COMMANDS[name]
    assert {each.partition("=")[0] for each in flags} <= flags_of(program)


def test_flags_of_finds_no_flag_that_the_program_does_not_have() -> None:
    assert "--rpc_port" in flags_of("mooncake_master")
    assert "--rpc_ports" not in flags_of("mooncake_master")


@pytest.mark.parametrize("name", OF_VLLM)
def test_command_of_vllm_has_options_of_vitcache_and_the_masters_address(name: str) -> None:
    assert check_vllm(COMMANDS[name][1:]) == ""
    options = options_of(name)
    assert set(options) <= set(OPTIONS)
    kind = name.partition(":")[0]
    assert options["mooncake"] == f"master:{flag(COMMANDS[f'{kind}: master'], '--rpc_port')}"


def test_all_engines_have_equal_commands() -> None:
    assert len({json.dumps(COMMANDS[name]) for name in OF_VLLM}) == 1


def test_flags_of_master_and_nodes_are_equal_in_both_files() -> None:
    assert COMMANDS["compose: master"] == COMMANDS["kubernetes: master"]
    nodes = [COMMANDS[name] for name in OF_MOONCAKE if "node" in name]
    assert len(nodes) == 3
    assert len({json.dumps([word for word in node if not word.startswith("--host=")]) for node in nodes}) == 1


def test_every_node_has_the_address_of_the_master_and_a_host_of_its_own() -> None:
    for name in OF_MOONCAKE:
        if "node" in name:
            words = COMMANDS[name]
            port = flag(COMMANDS["kubernetes: master"], "--rpc_port")
            assert flag(words, "--master_server_address") == f"master:{port}"
            assert flag(words, "--host") in (name.removeprefix("compose: "), "$(POD_IP)")
    assert [each["name"] for each in containers()["node"]["env"]] == ["POD_IP"]


def num_bytes(size: str) -> int:
    """The bytes of a size of Kubernetes, Compose or Mooncake, all of which have binary units."""
    return to_bytes("size", re.sub(r"[Gg](?:i|B|iB)?$", "GiB", size), 1)


def test_memory_of_a_node_contains_its_segment() -> None:
    segment = num_bytes(flag(COMMANDS["kubernetes: node"], "--global_segment_size"))
    assert num_bytes(containers()["node"]["resources"]["limits"]["memory"]) > segment
    for name in ("node-1", "node-2"):
        assert num_bytes(compose()["services"][name]["mem_limit"]) > segment


def test_memory_of_an_engine_contains_the_host_tier_of_vitcache() -> None:
    limit = num_bytes(containers()["engine"]["resources"]["limits"]["memory"])
    assert limit > num_bytes(options_of("kubernetes: engine")["host_bytes"])


def test_services_and_policies_select_pods_of_a_deployment() -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in objects_of("Deployment").values()]
    for service in objects_of("Service").values():
        assert service["spec"]["selector"] in labels
    policies = objects_of("NetworkPolicy")
    assert policies.keys() == objects_of("Deployment").keys()
    for name, policy in policies.items():
        assert policy["spec"]["podSelector"]["matchLabels"] == {"app": name}
    for name, container in containers().items():
        named = {port["name"] for port in container["ports"]}
        targets = {
            port["targetPort"]
            for service in objects_of("Service").values()
            if service["spec"]["selector"] == {"app": name}
            for port in service["spec"]["ports"]
        }
        assert targets <= named


def test_only_engines_reach_the_clients_network_and_the_stores_network_is_internal() -> None:
    content = compose()
    assert content["networks"]["store"] == {"internal": True}
    for name, service in content["services"].items():
        assert service["networks"] == (["store", "clients"] if "engine" in name else ["store"])
        assert ("ports" in service) == ("engine" in name)


def test_images_install_the_version_of_mooncake_that_the_extra_has() -> None:
    text = (FLEET / "compose.yaml").read_text()
    [pinned] = re.findall(r"mooncake-transfer-engine-non-cuda==[\w.]+", (ROOT / "setup.py").read_text())
    assert set(re.findall(r"mooncake-transfer-engine-non-cuda==[\w.]+", text)) == {pinned}
    assert pinned in (ROOT / "requirements/dev.txt").read_text()
    release = pinned.partition("==")[2].partition(".post")[0]
    assert containers()["node"]["image"].endswith(f"vitcache-fleet-store:{release}")


def test_images_have_the_version_of_vllm_that_the_extra_has() -> None:
    extras = (ROOT / "setup.py").read_text()
    [version] = re.findall(r'"vllm==([\d.]+)"', extras)
    assert f"FROM vllm/vllm-openai:v{version}\n" in (FLEET / "compose.yaml").read_text()
    assert containers()["engine"]["image"].endswith(f"vitcache-fleet-engine:{version}")


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
def test_head_of_a_file_says_that_it_is_untried(name: str) -> None:
    head = (FLEET / name).read_text().split("\n\n")[0]
    assert "UNTRIED" in head


def test_flags_and_links_of_the_readme_exist() -> None:
    text = (FLEET / "README.md").read_text()
    named = set(re.findall(r"`(--[a-z]\w+)", text))
    assert named
    assert named <= flags_of("mooncake_master") | flags_of("mooncake_client")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (FLEET / link).exists()] == []
    assert set(re.findall(r"^\| `([\w.]+)` \|", text, re.M)) >= {
        path.name for path in FLEET.iterdir() if path.is_file() and path.name != "README.md"
    }


def test_defaults_that_the_readme_and_the_files_state_are_those_of_the_master() -> None:
    words = COMMANDS["compose: master"]
    for name, value in re.findall(r"^\| `(--\w+)` \| (\d+) s \|", (FLEET / "README.md").read_text(), re.M):
        assert flag(words, name).removesuffix("s") == value
