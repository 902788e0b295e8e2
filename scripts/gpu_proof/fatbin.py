#!/usr/bin/env python3
"""Writes a copy of a CUDA library in which the code for all GPU architectures but one is zeroed.

The provider library of ONNX Runtime has 270 MB, nearly all of it machine code for GPUs that are not there. Sizes and
headers stay as they are, so the library loads as before; what is zeroed compresses to nothing.
"""

import argparse
import struct
import subprocess
from pathlib import Path

MAGIC = b"\x50\xed\x55\xba"
# magic, version, size of this header, size of the entries behind it
FATBIN = struct.Struct("<IHHQ")
# kind, version, size of this header, size of the code behind it; the architecture stands further on
ENTRY = struct.Struct("<HHIQ")
ARCHITECTURE_AT = 28


def section(library):
    """Where the fat binaries are in the file: offset and size."""
    listing = subprocess.run(["readelf", "-S", "-W", str(library)], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        fields = line.replace("[ ", "[").split()
        if ".nv_fatbin" in fields:
            return int(fields[4], 16), int(fields[5], 16)
    raise SystemExit(f"{library} has no section .nv_fatbin")


def zero_others(data, offset, size, keep):
    end, place, zeroed = offset + size, offset, 0
    while (place := data.find(MAGIC, place, end)) >= 0:
        _, _, header, length = FATBIN.unpack_from(data, place)
        entry, place = place + header, place + header + length
        while entry < place:
            _, _, entry_header, code = ENTRY.unpack_from(data, entry)
            if struct.unpack_from("<I", data, entry + ARCHITECTURE_AT)[0] != keep:
                data[entry + entry_header : entry + entry_header + code] = bytes(code)
                zeroed += code
            entry += entry_header + code
    return zeroed


def strip(source, target, keep):
    """Returns how many bytes were zeroed."""
    data = bytearray(Path(source).read_bytes())
    zeroed = zero_others(data, *section(source), keep)
    Path(target).write_bytes(data)
    return zeroed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--keep", type=int, default=90, help="compute capability times ten (default: 90, Hopper)")
    arguments = parser.parse_args()
    zeroed = strip(arguments.source, arguments.target, arguments.keep)
    print(f"{zeroed / 2**20:.1f} MiB zeroed")


if __name__ == "__main__":
    main()
