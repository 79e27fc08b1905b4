"""What test_communication.py starts with mpiexec: `exchange`, `steps DTYPE FOLDER`, `fail`, or npgpt's own
command line, on this process's rank."""

import sys
import time
from pathlib import Path

import numpy as np
from test_communication import exchange, steps

from npgpt.cli.main import main
from npgpt.errors import TrainingError
from npgpt.training.communication import processes

if sys.argv[1] == "npgpt":
    sys.exit(main(sys.argv[2:]))
with processes() as ranks:
    if sys.argv[1] == "exchange":
        print(exchange(ranks))
    elif sys.argv[1] == "steps":
        dtype, folder = sys.argv[2:]
        model, losses, evaluated, moments = steps(ranks, None, dtype)
        np.savez(Path(folder) / f"{dtype}-{ranks.size}-{ranks.rank}.npz", data=model.flat.data,
                 losses=np.array([*losses, evaluated]), **moments)
    elif ranks.rank == 1:
        raise TrainingError("this rank has failed")
    else:
        time.sleep(60)
