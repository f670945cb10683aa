"""What does a CUDA device give, and are its vectors, boxes and figures the CPU's?

    python benchmarks/cuda.py [--data FOLDER] [--facenet FILE] [--seconds 480] [--only STEP ...]
                              [--photos 16000] [--out FILE.json]

The steps are in `cuda_steps`. This file has the name of a package that torch looks for, and a
script's folder comes first on the path: where torch finds it, it steps aside.
"""

import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "cuda":
    sys.path[:] = [one for one in sys.path if Path(one).resolve() != HERE]
    del sys.modules["cuda"]
    import_module("cuda")
elif __name__ == "__main__":
    sys.path[0] = str(HERE.parent)
    import_module("benchmarks.cuda_steps").main()
