"""Kill the producer at random instants, again and again, its engine replaced by a recording of one.

Everything but vLLM is the real thing: text, identity, claims, checks, encoding, commits. Each life is forked from this
warmed process and killed with SIGKILL after a random time. stdin: {"recording": a captured dataset, "config":
GenerateConfig's fields, "folder": where to work, "kills": how many, "seed"}. stdout: what happened, as JSON.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run import generate as run
from arwkv_producer.run.job import prepare
from producer_recording import RecordedEngine


def live(config: GenerateConfig, log: Path) -> int:
    """Start a life; answers its process id."""
    child = os.fork()
    if child:
        return child
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        run.generate(config)
        os._exit(0)
    except BaseException:  # noqa: BLE001  # a forked child must not return into the parent's code
        traceback.print_exc()
        os._exit(1)


def hashes(out: Path) -> dict[str, str]:
    """Of the data files that are committed."""
    committed = {path.stem for path in out.glob("shards/part-*.json")}
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("shards/part-*.arrow"))
        if path.name.split(".")[0] in committed
    }


def main() -> dict[str, Any]:
    """Kill and continue until `kills` lives have ended by our hand; finish the last dataset."""
    asked = json.load(sys.stdin)
    folder, chance = Path(asked["folder"]), random.Random(asked["seed"])
    log = folder / "lives.log"

    def config(name: str) -> GenerateConfig:
        return GenerateConfig(**{**asked["config"], "data": tuple(asked["config"]["data"]), "out": str(folder / name)})

    engine = RecordedEngine(asked["recording"])
    run.start_engine = lambda config, job: engine  # type: ignore[assignment,return-value]
    run.require_startable = lambda config, job: None
    prepare(config("warm"))  # load what every life needs
    began = time.monotonic()
    _, status = os.waitpid(live(config("whole"), log), 0)
    duration_s = time.monotonic() - began
    assert status == 0, log.read_text()
    whole = hashes(folder / "whole")
    assert "vllm" not in sys.modules

    kills, lives, datasets, at_work, wrong = 0, 0, 0, 0, []
    while kills < asked["kills"] or lives == 0:
        name = f"killed-{datasets}"
        child = live(config(name), log)
        lives += 1
        time.sleep(chance.uniform(0, duration_s / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, log.read_text()
        kills += killed
        found = hashes(folder / name)
        at_work += killed and 0 < len(found) < len(whole)
        wrong += [f"life {lives}: {file}" for file, digest in found.items() if whole[file] != digest]
        if found == whole:  # done: begin another dataset, so that early instants are met as often as late ones
            datasets += 1
    _, status = os.waitpid(live(config(f"killed-{datasets}"), log), 0)
    ends = {f"killed-{number}": hashes(folder / f"killed-{number}") for number in range(datasets + 1)}
    return {
        "kills": kills,
        "kills_among_commits": at_work,
        "lives": lives,
        "life_s": duration_s,
        "parts": len(whole),
        "wrong": wrong + [name for name, found in ends.items() if found != whole],
        "datasets": len(ends),
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
