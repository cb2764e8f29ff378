"""The parts of a run, in order of their worth, and the commands of each part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_runner.settings import Settings

# The parts that tell most come first, as the budget may end before the last part.
ORDER = (
    *("probe", "tests", "placement", "scatter", "ring", "step", "hits", "merge", "multiturn"),
    *("blocks", "keys", "limit", "engines", "sglang", "sglang_chat"),
)
# `sanitize` is the last part: it takes longest. A dry run omits it, as it checks only code on a GPU.
PROBE, TESTS, SANITIZE = "probe", "tests", "sanitize"
# Real engines of vLLM, and the bench of this name.
ENGINES = "engines"
SGLANG = ("sglang", "sglang_chat")  # the benches that need SGLang
PROBE_S = 18.0  # 20 seconds in all, with the import of torch
PROBE_GRACE_S = 12.0  # the probe ends by itself; it is interrupted this long after it should have ended

# The tests use at most this share of the budget if other parts follow: on a new machine they compile their
# kernels first. The core tests run first, and RESUME runs the rest.
TESTS_SHARE = 0.4

# The tests of these files decide whether the results of the benches mean anything.
CORE = ("ops", "graphs", "ring", "cache", "pipeline")
# The tests of other folders that have a CUDA variant.
ELSEWHERE = (
    *("tests/placement", "tests/triton_kernels"),
    *("tests/pages/test_reservation.py", "tests/ring/test_pinned_ring.py"),
)
# The tests that launch this package's kernels at small sizes: the check of each access takes long.
KERNELS = (
    "tests/triton_kernels/test_launchers.py",
    "tests/placement/test_gpu_kernels.py",
    "tests/placement/test_gpu_kernels_store.py",
)
MEMORY_CHECKED = (
    *KERNELS,
    *("tests/placement/test_ops.py", "tests/placement/test_placement_table.py"),
    "tests/pages/test_reservation.py",
)
PLUGIN = ("-p", "gpu_runner.pytest_lines")


class Command(NamedTuple):
    """One command of a part, and the variables that it needs besides those of the run."""

    arguments: list[str]
    env: Mapping[str, str] = {}
    suite: str | None = None  # name of the test report, if the command runs tests


class Part(NamedTuple):
    """One part of a run; its commands run one after the other.

    `skipped` is the reason why a machine cannot run them, or None.
    """

    name: str
    commands: list[Command]
    limit_s: float = float("inf")
    skipped: str | None = None


def bench_names(root: Path) -> list[str]:
    """Return the names of all benches, from their files: the package may not be built yet."""
    return sorted(path.stem.removeprefix("bench_") for path in root.glob("bench/claims/bench_*.py"))


def in_order(benches: Mapping[str, bool], *, dry: bool) -> list[str]:
    """Return the names of the parts of a run without ONLY.

    Parameters
    ----------
    benches
        For each bench, whether it measures a GPU where one exists, as the bench declares.
    dry
        Whether the run has no GPU. Then all benches run, so that each is exercised; those that measure only
        the CPU are the last ones.
    """
    known = {PROBE: True, TESTS: True, **benches}
    later = sorted(set(benches) - set(ORDER), key=lambda name: (not benches[name], name))
    names = [name for name in (*ORDER, *later) if name in known]
    on_gpu = [name for name in names if known[name]]
    if not dry:
        return [*on_gpu, SANITIZE]
    return on_gpu + [name for name in names if not known[name]]


def check_only(only: Sequence[str], benches: Sequence[str]) -> None:
    """Raise ValueError if ONLY names a part that does not exist."""
    known = [PROBE, TESTS, SANITIZE, *benches]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"each part in ONLY must be one of: {' '.join(known)}; got {unknown[0]}")


def make_part(
    name: str,
    settings: Settings,
    *,
    has_xdist: bool,
    why_no_vllm: str | None = None,
    why_no_sglang: str | None = None,
) -> Part:
    """Return a part with its commands.

    `has_xdist` says whether pytest-xdist is installed, `why_no_vllm` and `why_no_sglang` why an engine
    cannot use the GPU, or None.
    """
    python = settings.python
    if name == PROBE:
        arguments = [python, "-m", "vitcache.bench.probe", "--lines", str(settings.lines)]
        if settings.dry:  # the interpreter needs longer than a GPU
            return Part(name, [Command(arguments)])
        seconds = ["--seconds", f"{PROBE_S:g}"]
        return Part(name, [Command([*arguments, *seconds])], limit_s=PROBE_S + PROBE_GRACE_S)
    if name == TESTS or (name == SANITIZE and settings.dry):
        is_alone = list(settings.only) == [name]
        limit_s = float("inf") if settings.budget_s is None or is_alone else TESTS_SHARE * settings.budget_s
        return Part(name, [_tests(settings, has_xdist)], limit_s)
    if name == SANITIZE:
        # Without torch's caching allocator each tensor is an allocation of its own, so a read past the
        # tensor's end is found.
        no_caching = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Part(
            name,
            [
                _sanitize(settings, "memcheck", MEMORY_CHECKED, no_caching),
                _sanitize(settings, "racecheck", KERNELS, {}),
            ],
        )
    if name == ENGINES:
        # A call that lets the host wait for the GPU is an error in each of these engines.
        no_waits = {"VLLM_GPU_SYNC_CHECK": "error"}
        commands = [Command(_bench(name, settings), no_waits), _engine_tests(settings, no_waits)]
        return Part(name, commands, skipped=why_no_vllm)
    return Part(name, [Command(_bench(name, settings))], skipped=why_no_sglang if name in SGLANG else None)


def _bench(name: str, settings: Settings) -> list[str]:
    cases = "smoke" if settings.dry else "full"
    arguments = [settings.python, "-m", "vitcache", "bench", "--bench", name, "--cases", cases]
    return [*arguments, "--out", str(settings.bench_files), "--lines", str(settings.lines), "--resume"]


def _engine_tests(settings: Settings, variables: Mapping[str, str]) -> Command:
    """The tests start each engine in a process of its own.

    The folder's other tests make a worker on the CPU in their own process, where vLLM would choose CUDA.
    """
    folder = "tests/engines"
    arguments = [settings.python, "-m", "pytest", *PLUGIN, "-c", f"{folder}/pytest.ini", folder, "--full"]
    arguments += ["-m", "engines or full"]
    lines = {"VITCACHE_TEST_LINES": str(settings.lines), "VITCACHE_TEST_SUITE": ENGINES}
    if settings.resume:
        lines["VITCACHE_TEST_RESUME"] = "1"
    return Command(arguments, {**variables, **lines, "ENGINES_DEVICE": "cuda"}, ENGINES)


def _tests(settings: Settings, has_xdist: bool) -> Command:
    """The tests run in a worker of pytest-xdist: if a test hangs or loses the device, the worker ends and a
    new one runs the next test. faulthandler prints where the test hangs. A thread ends the worker, as a
    blocking CUDA call delays every signal handler of Python.
    """
    folder = settings.root / "tests/gpu"
    core = [folder / f"test_{name}.py" for name in CORE]
    rest = sorted(set(folder.glob("test_*.py")) - set(core))
    files = [str(path.relative_to(settings.root)) for path in (*core, *rest)]
    options = ["--continue-on-collection-errors"]  # a file that cannot be imported must not stop all others
    if has_xdist:
        options += ["-n", "1", "--max-worker-restart", "3"]
    if settings.dry or settings.budget_s is not None:  # one hanging test must not use up the budget
        options += ["-o", "timeout=90", "-o", "faulthandler_timeout=80"]
    arguments = [settings.python, "-m", "pytest", *PLUGIN, *files, *ELSEWHERE, "-m", "gpu", "--durations=10"]
    env = {"VITCACHE_TEST_LINES": str(settings.lines), "VITCACHE_TEST_SUITE": TESTS}
    if settings.resume:
        env["VITCACHE_TEST_RESUME"] = "1"
    return Command([*arguments, *options, "-o", "timeout_method=thread"], env, TESTS)


def _sanitize(settings: Settings, tool: str, files: Sequence[str], env: Mapping[str, str]) -> Command:
    """Errors that CUDA returns are not reported, as some tests cause such errors."""
    arguments = ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "1"]
    arguments += [settings.python, "-m", "pytest", *PLUGIN, "-m", "gpu", "-o", "timeout=0", *files]
    lines = {"VITCACHE_TEST_LINES": str(settings.lines), "VITCACHE_TEST_SUITE": tool}
    return Command(arguments, {**env, **lines}, tool)
