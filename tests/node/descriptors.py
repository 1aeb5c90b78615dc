"""What Node.js lacks, in Python's standard library: packets with descriptors, and writable shared memory.

It knows nothing of the zoo: it reads one JSON command a line and answers it with one line. All messages are made and
understood by the client.
"""

import base64
import fcntl
import json
import mmap
import os
import socket
import sys

line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.settimeout(10)
fd, memory = -1, None
for command in sys.stdin:
    asked = json.loads(command)
    answer = {}
    match asked["do"]:
        case "connect":
            line.connect(asked["path"])
        case "share":
            fd = os.memfd_create("node", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, asked["size"])
            os.posix_fallocate(fd, 0, asked["size"])
            memory = mmap.mmap(fd, asked["size"])
            fcntl.fcntl(fd, 1033, asked["seals"])  # F_ADD_SEALS
        case "write":
            data = base64.b64decode(asked["data"])
            memory[asked["offset"] : asked["offset"] + len(data)] = data
        case "send":
            data = [base64.b64decode(asked["data"])]
            if asked.get("with"):
                socket.send_fds(line, data, [fd])
            else:
                line.sendmsg(data)
        case "receive":
            data, fds, _, _ = socket.recv_fds(line, 4096, 1)
            answer = {
                "data": base64.b64encode(data).decode(),
                "path": f"/proc/{os.getpid()}/fd/{fds[0]}" if fds else "",
            }
    print(json.dumps(answer), flush=True)
