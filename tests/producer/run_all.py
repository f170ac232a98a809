"""Run several captures in one process of their own: vLLM is imported once, and the tests' process stays clean.

stdin: a JSON list of GenerateConfig's fields. stdout: a JSON list of summaries, or {"error": …} where one was refused.
With `copy_of` and `lost_part` a run finds a copy of that dataset, without that part.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run import generate
from arwkv_store.errors import ArwkvError


def run(fields: dict[str, Any]) -> dict[str, Any]:
    """One capture's summary, or its refusal."""
    if source := fields.pop("copy_of", None):
        shutil.copytree(source, fields["out"])
        for path in Path(fields["out"]).glob(f"shards/part-{fields.pop('lost_part'):06d}.*"):
            path.unlink()
    try:
        return generate(GenerateConfig(**{**fields, "data": tuple(fields["data"])}))
    except ArwkvError as error:
        return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


if __name__ == "__main__":
    json.dump([run(fields) for fields in json.load(sys.stdin)], sys.stdout)
