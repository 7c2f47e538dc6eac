"""Become another program that ends with its parent, as another user where asked. Standard library only.

`python -I -S launch.py PARENT SIGNAL UID GID -- COMMAND...`; a UID of -1 keeps the user. Settings that a child must
take on between fork and exec are made here, in a process of its own, because Python code in a child forked from a
threaded process can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522


def main(argv: list[str]) -> None:
    """Take on user and death signal, then become the command."""
    parent, death_signal, uid, gid = (int(word) for word in argv[:4])
    command = argv[argv.index("--") + 1 :]
    linux = sys.platform.startswith("linux")
    libc = ctypes.CDLL(None, use_errno=True) if linux else None
    if uid >= 0:
        closed = not _is_open_to_others(command[0])
        # Without this bit `access()`, by which Postgres looks at its own binaries, forgets the right that is
        # kept below. A container that does not let root set it falls back on keeping it for all else.
        if closed and libc is not None and libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0:
            libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if closed and libc is not None:
            _keep_path_search(libc)
    # Started in the background of a script we would ignore SIGINT, and so would every child for ever.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    # After setuid, which clears it.
    end_with_parent(parent, death_signal)
    os.execv(command[0], command)


def end_with_parent(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when the thread that started it ends (Linux; elsewhere nothing).

    Ends the process at once where `parent` is gone already, because then nobody would ever signal it.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _is_open_to_others(path: str) -> bool:
    """Whether any user may enter the folders of the program and of the current directory."""
    for start in (os.path.realpath(path), os.getcwd()):
        folder = os.path.dirname(start)
        while True:
            if not os.stat(folder).st_mode & 0o001:
                return False
            if folder == os.path.dirname(folder):
                break
            folder = os.path.dirname(folder)
    return True


def _keep_path_search(libc: ctypes.CDLL) -> None:
    """Keep one right of root: to pass folders closed to others, /root for one, on the way to the own files.

    `CAP_DAC_READ_SEARCH` is enough and is preferred; containers often grant only `CAP_DAC_OVERRIDE`. Where neither
    can be kept the program says itself which path it cannot enter.
    """
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        bit = 1 << capability
        # effective, permitted, inheritable for capabilities 0-31, then for 32-63.
        data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
        if libc.capset(header, data) == 0:
            libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            return


if __name__ == "__main__":
    main(sys.argv[1:])
