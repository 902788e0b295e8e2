#!/usr/bin/env python3
"""Packs all that run.py needs on a machine with a GPU and no network, in parts of a size that can be sent.

Takes the release binary (`make build`), nats-server and the weights (`make model`) from here, the GPU builds of ONNX
Runtime and onnxruntime-genai from their pinned wheels. Of the provider's library, code for other GPUs than those of
`--architecture` is left out. Parts are a tar file cut in pieces: DIR/1/part, DIR/2/part, ... On the other machine:

    cat */part | tar x -C FOLDER && python3 FOLDER/scripts/gpu_proof/run.py --folder FOLDER
"""

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fatbin

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parent
ROOT = SCRIPTS.parent
sys.path.insert(0, str(SCRIPTS))
import make_model  # noqa: E402
import setup  # noqa: E402

REQUIREMENTS = HERE / "requirements.txt"
PROVIDER = "libonnxruntime_providers_cuda.so"
MIB = 2**20


def wheels(work):
    """The pinned wheels, unpacked: {prefix: folder}."""
    if not list(work.glob("onnxruntime_*.whl")):
        setup.pip(
            ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(REQUIREMENTS)]
            + ["--implementation", "cp", "--python-version", "3.12", "--abi", "cp312"]
            + ["--platform", "manylinux_2_28_x86_64", "--dest", str(work)],
            "download the GPU builds",
        )
    unpacked = {}
    for name in ("onnxruntime_gpu", "onnxruntime_genai_cuda"):
        unpacked[name] = work / name
        if not unpacked[name].is_dir():
            with zipfile.ZipFile(next(work.glob(f"{name}-*.whl"))) as archive:
                archive.extractall(unpacked[name])
    return unpacked


def weights(work):
    folder = work / "weights"
    folder.mkdir(exist_ok=True)
    found = list(folder.glob("**/*.gguf"))
    return found[0] if found else make_model.fetch(folder)


def stripped(binary, work):
    target = work / "seatbelt"
    shutil.copy(binary, target)
    subprocess.run(["strip", str(target)], check=True)
    return target


def members(arguments, work):
    """Every file that is sent, by its name there."""
    folders = wheels(work)
    libraries = folders["onnxruntime_gpu"] / "onnxruntime" / "capi"
    provider = work / PROVIDER
    if not provider.is_file():
        fatbin.strip(libraries / PROVIDER, provider, arguments.architecture)
    found = {
        f"lib/{PROVIDER}": provider,
        "lib/libonnxruntime_providers_shared.so": libraries / "libonnxruntime_providers_shared.so",
        "bin/nats-server": ROOT / ".deps" / "nats-server" / "nats-server",
        "weights.gguf": weights(work),
    }
    core = next(libraries.glob("libonnxruntime.so.*"))
    found[f"lib/{core.name}"] = core
    genai = folders["onnxruntime_genai_cuda"]
    for path in sorted((genai / "onnxruntime_genai").rglob("*")):
        # its model builder is not needed
        if path.is_file() and "models" not in path.parts:
            found[f"site/{path.relative_to(genai)}"] = path
    # What changes most comes last, so that a change of it changes the last part alone.
    for path in [SCRIPTS / "smollm2.py", *sorted(HERE.glob("*.*"))]:
        found[f"scripts/{path.relative_to(SCRIPTS)}"] = path
    found["bin/seatbelt"] = stripped(arguments.binary, work)
    return found


def compressed(name, source, work):
    """The file under `xz`, made anew only where it changed."""
    target = work / "xz" / f"{name}.xz"
    if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
        print(f"pack: {name}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.compress(source.read_bytes(), preset=6))
    return target


def write_parts(files, work, out, limit):
    """One tar file of all, cut at `limit` bytes."""
    whole = work / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for name, source in files.items():
            if name.startswith("scripts/"):
                archive.add(source, name)
            else:
                archive.add(compressed(name, source, work), f"{name}.xz")
    shutil.rmtree(out, ignore_errors=True)
    with open(whole, "rb") as source:
        for number in range(1, 1000):
            piece = source.read(limit)
            if not piece:
                return
            (out / str(number)).mkdir(parents=True)
            (out / str(number) / "part").write_bytes(piece)
            print(f"pack: part {number}: {len(piece) / MIB:.1f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the parts")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "seatbelt")
    parser.add_argument("--work", type=Path, default=ROOT / ".deps" / "gpu-proof", help="kept between runs")
    parser.add_argument("--part-mib", type=int, default=58)
    parser.add_argument("--architecture", type=int, default=90, help="compute capability times ten (default: 90, Hopper)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        files = members(arguments, arguments.work)
    except setup.SetupError as error:
        raise SystemExit(f"pack: {error}") from error
    write_parts(files, arguments.work, arguments.out, arguments.part_mib * MIB)


if __name__ == "__main__":
    main()
