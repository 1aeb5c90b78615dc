"""`python -m zoo.curve DIR`: the CURVE keys that tcp:// needs. Never touches a key that is there.

DIR/server.key_secret is the broker's (`curve_dir` in config.toml), DIR/client.key_secret the clients' (with
`$ZOO_CURVE_DIR`), and DIR/clients holds the public keys of those who may connect. A machine that runs only
clients needs server.key, client.key and client.key_secret; never give it server.key_secret.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import zmq
import zmq.auth


def make_keys(folder: Path) -> list[Path]:
    """Makes what is missing and gives the files that were made.

    Raises:
        OSError: the folder cannot be used. RuntimeError: this libzmq has no CURVE.
    """
    if not zmq.has("curve"):
        raise RuntimeError("this libzmq was built without CURVE")
    authorised = folder / "clients"
    for place in (folder, authorised):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
    made: list[Path] = []
    mask = os.umask(0o077)
    try:
        for name in ("server", "client"):
            public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
            if public.exists() or secret.exists():
                if not (public.exists() and secret.exists()):
                    raise FileExistsError(f"{folder} holds only one half of the {name}'s key pair; move it away first")
                continue
            zmq.auth.create_certificates(folder, name)
            made += [public, secret]
        if folder / "client.key" in made or not any(authorised.iterdir()):
            target = authorised / "client.key"
            if target.exists():
                raise FileExistsError(f"{target} is there, of another key pair; move it away first")
            shutil.copyfile(folder / "client.key", target)
            made.append(target)
    finally:
        os.umask(mask)
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zoo.curve", description=__doc__.split("\n\n")[0])
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
    print(f'broker: curve_dir = "{folder}" in config.toml     clients: export ZOO_CURVE_DIR={folder}')
    return 0


if __name__ == "__main__":
    sys.exit(main())
