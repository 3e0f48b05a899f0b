"""Look through the reports in ci/reports for tests that never ran.

Fails where a test was skipped in every report that has it, and where none ran for a name that
`--ran` lists (an array library, as it stands between the brackets of a test's name).
"""

import argparse
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--ran", nargs="*", default=[], metavar="LIBRARY")
needed = parser.parse_args().ran

reports = sorted(Path(__file__).with_name("reports").glob("*.xml"))
ran: set[str] = set()
skipped: dict[str, str] = {}
for report in reports:
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if skip is None or skip.get("type") == "pytest.xfail":
            ran.add(name)
        else:
            skipped[name] = skip.get("message", "")

problems = [f"skipped everywhere: {name}: {skipped[name]}" for name in sorted(skipped.keys() - ran)]
for library in needed:
    word = re.compile(rf"\[(.*-)?{re.escape(library)}(-.*)?\]$")
    if not any(word.search(name) for name in ran):
        problems.append(f"no test ran on {library}")
print(*problems, sep="\n", end="\n" if problems else "")
print(f"{len(ran)} tests ran, {len(problems)} problems, in {', '.join(r.name for r in reports)}")
sys.exit(bool(problems) or not ran)
