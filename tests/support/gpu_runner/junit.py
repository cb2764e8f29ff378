"""The test report, in the format of JUnit, from the lines of all runs.

pytest's own report has only the tests of one process, and does not exist if that process is killed.
"""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from gpu_runner.lines import Lines
from gpu_runner.outcomes import test_outcomes

# Characters that XML 1.0 does not allow.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_report(lines: Lines, suite: str, path: Path) -> None:
    """Write the latest outcome of each test."""
    latest = test_outcomes(lines, suite)
    outcomes = [line["outcome"] for line in latest.values()]
    root = ET.Element(
        "testsuite",
        name=suite,
        tests=str(len(outcomes)),
        failures=str(outcomes.count("failed")),
        skipped=str(outcomes.count("skipped")),
        time=f"{sum(line['seconds'] for line in latest.values()):.3f}",
    )
    for test, line in latest.items():
        module, _, name = test.partition("::")
        classname = module.removesuffix(".py").replace("/", ".")
        case = ET.SubElement(root, "testcase", classname=classname, name=name, time=f"{line['seconds']:.3f}")
        tag = {"failed": "failure", "skipped": "skipped"}.get(line["outcome"])
        if tag:
            text = FORBIDDEN.sub("?", line["message"])
            ET.SubElement(case, tag, message=text.strip().rpartition("\n")[2]).text = text
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
