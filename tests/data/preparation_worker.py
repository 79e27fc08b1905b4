"""python preparation_worker.py FOLDER KILLS: prepares FOLDER/texts in children that are killed at random
moments, again and again, and compares every folder that gets finished with one made in quiet."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import preparing

from npgpt.data.shards import open_shard


def main(folder: Path, wanted: int) -> None:
    preparing.small_parts()
    preparing.run(folder / "texts", folder / "warm")                               # imports, caches
    begun = time.perf_counter()
    preparing.run(folder / "texts", folder / "quiet")
    seconds = time.perf_counter() - begun
    quiet, out, draw = preparing.contents(folder / "quiet"), folder / "out", random.Random(0)
    kills = finished = resumed = 0
    while kills < wanted or finished == 0:
        child = os.fork()
        if child == 0:
            preparing.run(folder / "texts", out)
            os._exit(0)
        time.sleep(draw.random() * seconds * 0.8)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        resumed += (out / "unfinished/00001.counts").exists()
        for name, content in (preparing.contents(out) if out.exists() else {}).items():
            if "/" not in name and name.endswith(".bin") and not name.startswith("."):
                assert content == quiet[name], f"{name} is half-written"
                open_shard(out / name)
        if kills % 5 == 0 or not os.WIFSIGNALED(status):
            preparing.run(folder / "texts", out)
            assert preparing.contents(out) == quiet
            finished += 1
            shutil.rmtree(out)
    print(json.dumps({"kills": kills, "finished": finished, "resumed": resumed}))


main(Path(sys.argv[1]), int(sys.argv[2]))
