"""Known faults of what is installed, by pip-audit: fails on one, says how much nobody knows of."""

from __future__ import annotations

import json
import subprocess
import sys

# Of pip-audit as a whole: an index that does not know its questions answers 150 in 17 s.
TIMEOUT_S = 180


def main() -> None:
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        found = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("the index does not answer: nothing was audited")
        return
    known = [each for each in found if "skip_reason" not in each]
    print(f"{len(known)} of {len(found)} packages audited; the index knows nothing of the others")
    faults = [(each, fault) for each in known for fault in each["vulns"]]
    for each, fault in faults:
        mended = ", ".join(fault["fix_versions"]) or "no version"
        print(f"{each['name']} {each['version']}: {fault['id']}, mended in {mended}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
