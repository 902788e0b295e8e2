#!/usr/bin/env python3
"""Runs the proof and its yardstick from an unpacked folder of pack.py.

Unpacks, makes the fp16 models, finds CUDA's libraries (those of the `nvidia` Python packages, or the system's) and runs
prove.py and anchor.py. All that they print goes to the report too.
"""

import argparse
import glob
import json
import lzma
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STAGES = ["prove", "anchor"]


def unpack(path):
    target = path.with_suffix("")
    if not target.exists():
        target.write_bytes(lzma.decompress(path.read_bytes()))
    target.chmod(0o755)


def prepare(folder):
    with ThreadPoolExecutor() as pool:
        list(pool.map(unpack, folder.rglob("*.xz")))
    core = next((folder / "lib").glob("libonnxruntime.so.*.*.*"))
    # onnxruntime-genai looks for the library in a package of this name.
    package = folder / "site" / "onnxruntime"
    (package / "capi").mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for library in (folder / "lib").glob("libonnxruntime*.so*"):
        link = package / "capi" / library.name
        if library.suffix != ".xz" and not link.exists():
            link.symlink_to(library)
    soname = folder / "lib" / "libonnxruntime.so.1"
    if not soname.exists():
        soname.symlink_to(core.name)
    return core


def make_models(folder):
    folders = [folder / "fp16", folder / "fp16-pruned"]
    if not (folders[-1] / "tokenizer_config.json").exists():
        converter = [sys.executable, str(folder / "scripts" / "smollm2.py"), str(folder / "weights.gguf")]
        commands = [converter + [str(model), "--precision", "fp16"] for model in folders]
        commands[-1].append("--last-row")
        for process in [subprocess.Popen(command) for command in commands]:
            if process.wait() != 0:
                raise SystemExit("run: the model could not be made")
    for model in folders:
        teach_tools(model / "tokenizer_config.json")


def teach_tools(path):
    """The model's own template has no place for tools. Without tools it writes what it wrote before."""
    teaching = (Path(__file__).resolve().parent / "tools.jinja").read_text(encoding="utf-8").strip()
    config = json.loads(path.read_text(encoding="utf-8"))
    if not config["chat_template"].startswith(teaching):
        config["chat_template"] = teaching + config["chat_template"]
        path.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")


def library_path(folder):
    try:
        import nvidia

        places = [place for root in nvidia.__path__ for place in glob.glob(os.path.join(root, "*", "lib"))]
    except ImportError:
        places = []
    return ":".join([str(folder / "lib"), *places, os.environ.get("LD_LIBRARY_PATH", "")])


def stage(name, folder, core, arguments):
    scripts = folder / "scripts" / "gpu_proof"
    command = [sys.executable, "-u", str(scripts / f"{name}.py"), "--model", str(folder / "fp16")]
    command += ["--device", arguments.device, "--batches", arguments.batches, "--tokens", str(arguments.tokens)]
    if name == "prove":
        command += ["--binary", str(folder / "bin" / "seatbelt"), "--nats-server", str(folder / "bin" / "nats-server")]
        command += ["--onnxruntime", str(core), "--pruned", str(folder / "fp16-pruned")]
        command += ["--expect", str(scripts / "texts.json"), "--slots", str(arguments.slots)]
        command += ["--context", str(arguments.context)]
        if arguments.write_texts:
            command += ["--write-texts", str(arguments.write_texts.resolve())]
    return command


def run(command, environment, report, seconds):
    start = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            report.write(line)
            report.flush()
            if time.monotonic() - start > seconds:
                process.terminate()
    return process.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="default: FOLDER/report.txt")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--write-texts", type=Path, help="what texts.json is made of, on the CPU")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--seconds", type=int, default=300, help="most for a stage")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    start = time.monotonic()
    core = prepare(folder)
    make_models(folder)
    print(f"INFO prepared in {time.monotonic() - start:.0f} s", flush=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path(folder), "PYTHONPATH": str(folder / "site")}
    failed = 0
    with open(arguments.report or folder / "report.txt", "w", encoding="utf-8") as report:
        for name in arguments.stages.split(","):
            failed += run(stage(name, folder, core, arguments), environment, report, arguments.seconds) != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
