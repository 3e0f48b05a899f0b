"""Look through the reports in ci/reports for tests that never ran.

Fails where a test was skipped in every report that has it, where none ran for a name that `--ran`
lists (an array library, as it stands between the brackets of a test's name), and where properties
were tried on fewer than `--examples` random cases in all, in the reports whose names match.
"""

import argparse
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--ran", nargs="*", default=[], metavar="LIBRARY")
parser.add_argument("--examples", nargs=2, default=["0", "*.xml"], metavar=("LEAST", "REPORTS"))
options = parser.parse_args()
least, counted = int(options.examples[0]), options.examples[1]

reports = sorted(Path(__file__).with_name("reports").glob("*.xml"))
ran: set[str] = set()
skipped: dict[str, str] = {}
examples = 0
for report in reports:
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if skip is None or skip.get("type") == "pytest.xfail":
            ran.add(name)
        else:
            skipped[name] = skip.get("message", "")
        if report.match(counted):
            tried = case.find("properties/property[@name='examples']")
            examples += 0 if tried is None else int(tried.get("value", "0"))

problems = [f"skipped everywhere: {name}: {skipped[name]}" for name in sorted(skipped.keys() - ran)]
for library in options.ran:
    word = re.compile(rf"\[(.*-)?{re.escape(library)}(-.*)?\]$")
    if not any(word.search(name) for name in ran):
        problems.append(f"no test ran on {library}")
if examples < least:
    problems.append(f"{examples} random cases, of at least {least}")
print(*problems, sep="\n", end="\n" if problems else "")
print(f"{examples} random cases in {counted}")
print(f"{len(ran)} tests ran, {len(problems)} problems, in {', '.join(r.name for r in reports)}")
sys.exit(bool(problems) or not ran)
