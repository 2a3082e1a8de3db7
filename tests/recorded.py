"""Records of result files that a test has written, for the tests of what reads them."""

import hashlib
import json
from pathlib import Path


def write_record(paths: list[Path], config: dict, **more) -> Path:
    """Write the record of a run that left these files; returns its path."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    record = paths[0].with_suffix(".json")
    record.write_text(json.dumps({"config": config, "files": digests, **more}))
    return record
