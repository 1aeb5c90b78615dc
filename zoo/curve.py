"""`python -m zoo.curve DIR`: the CURVE keys that tcp:// needs. Never touches a key that is there.

The broker keeps DIR (`curve_dir` in config.toml). A client's machine gets three files of it, in a folder that
$ZOO_CURVE_DIR names there: server.key, client.key and client.key_secret. Never give it server.key_secret: with that,
another could answer in the broker's place.

DIR/clients holds the public keys (NAME.key) of the clients that may connect: one for each machine, made there with
`python -m zoo.curve`, can be taken away again by itself. Where a folder DIR/operators exists, only the keys in it may
pin, unload, clean up and reload. `zoo reload`, or SIGHUP, reads both folders again.
"""

from __future__ import annotations

from zoo.system import program

if __name__ == "__main__":
    program.put_ours_first()

import os
import stat
import struct
import sys
from pathlib import Path

from zmq.utils import z85

from zoo.system.files import read_regular

MAX_KEY_FILE = 64 << 10


def read_key(file: str | os.PathLike[str]) -> tuple[bytes, bytes | None]:
    """The public key of a file, and the secret one if it is there, both as the 40 characters of Z85.

    Raises:
        OSError: it cannot be read. ValueError: there is no key in it.
    """
    found: dict[bytes, bytes] = {}
    for line in read_regular(file, MAX_KEY_FILE).splitlines():
        name, equals, value = line.partition(b"=")
        if equals and not line.lstrip().startswith(b"#"):
            found.setdefault(name.strip(), value.strip(b" \t\r'\""))
    public, secret = found.get(b"public-key"), found.get(b"secret-key")
    if public is None:
        raise ValueError(f"{os.fspath(file)} holds no public key")
    for key in (public, secret):
        if key is not None and not _is_key(key):
            raise ValueError(f"{os.fspath(file)} holds a key that is not 40 characters of Z85")
    return public, secret


def _is_key(key: bytes) -> bool:
    try:
        return len(key) == 40 and len(z85.decode(key)) == 32
    except (KeyError, ValueError, struct.error):
        return False


def make_keys(folder: Path) -> list[Path]:
    """Makes what is missing and gives the files that were made.

    Raises:
        OSError: the folder cannot be used. RuntimeError: this libzmq has no CURVE.
    """
    import shutil

    import zmq.auth  # with asyncio, which those who only read a key do without

    if not zmq.has("curve"):
        raise RuntimeError("this libzmq was built without CURVE")
    authorised = folder / "clients"
    for place in (folder, authorised):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{place} is a link, or belongs to another user; name a folder of your own")
        place.chmod(0o700)
    made: list[Path] = []
    mask = os.umask(0o077)
    try:
        for name in ("server", "client"):
            public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
            if os.path.lexists(public) or os.path.lexists(secret):
                if not (public.exists() and secret.exists()):
                    raise FileExistsError(f"{folder} holds only one half of the {name}'s key pair; move it away first")
                continue
            zmq.auth.create_certificates(folder, name)
            made += [public, secret]
        if folder / "client.key" in made or not any(authorised.iterdir()):
            target = authorised / "client.key"
            if os.path.lexists(target):
                raise FileExistsError(f"{target} is there, of another key pair; move it away first")
            shutil.copyfile(folder / "client.key", target)
            made.append(target)
    finally:
        os.umask(mask)
    return made


def main(argv: list[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m zoo.curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder for the keys; it is made private (0700)")
    folder: Path = parser.parse_args(argv).dir
    try:
        made = make_keys(folder)
    except (OSError, RuntimeError) as e:
        print(f"zoo.curve: {e}", file=sys.stderr)
        return 1
    for file in made:
        print(f"made {file}")
    if not made:
        print(f"{folder} has its keys already; nothing was changed")
    print(f'broker: curve_dir = "{folder}" in config.toml; clients on this machine: export ZOO_CURVE_DIR={folder}')
    print("another machine's clients get server.key, client.key and client.key_secret; never server.key_secret")
    return 0


if __name__ == "__main__":
    sys.exit(main())
