"""System calls that no program in a box may make, as a filter for seccomp.

What namespaces do not hold back: the worker's keyring, which every child inherits and can read;
sockets that are no part of a network, as those between a virtual machine and its host; and doors
into the kernel that build tools and agents do not need, as container engines refuse them too
(https://docs.docker.com/engine/security/seccomp/). A program that asks is told that the kernel does
not have it.
"""

from __future__ import annotations

import errno
import os
import struct

#: The numbers, by what ``seccomp_data.arch`` says of the caller: 32-bit programs have others.
_REFUSED = {
    # And of i386 socketcall, which makes sockets of a family that no filter can see.
    # add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd, and the three of io_uring
    0xC000003E: (248, 249, 250, 298, 321, 323, 425, 426, 427),  # x86_64
    0x40000003: (286, 287, 288, 336, 357, 374, 425, 426, 427, 102),  # i386
    0xC00000B7: (217, 218, 219, 241, 280, 282, 425, 426, 427),  # aarch64
    0x40000028: (309, 310, 311, 364, 386, 388, 425, 426, 427),  # arm
}
#: The number of socket(2), and the families that it may make: unix, inet, inet6, netlink.
_SOCKET = {0xC000003E: 41, 0x40000003: 359, 0xC00000B7: 198, 0x40000028: 281}
_FAMILIES = (1, 2, 10, 16)
#: What ``uname`` calls the machines of these.
_MACHINES = {"x86_64", "i386", "i586", "i686", "aarch64", "armv7l", "armv8l"}

#: Operations of the classic packet filter, and where it finds the call's number and architecture
#: (https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html).
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
#: Marks a call of the x32 interface, whose numbers are those of x86_64 otherwise.
_X32 = 0x40000000


def known_machine() -> bool:
    """Return whether the filter knows this machine's calls; elsewhere it refuses none."""
    return os.uname().machine in _MACHINES


def call_filter() -> bytes:
    """Return the filter, as bubblewrap takes it with ``--seccomp``."""
    program = [_operation(_LOAD, _ARCHITECTURE)]
    for architecture, numbers in _REFUSED.items():
        block = [_operation(_LOAD, _NUMBER), _operation(_AND, 0xFFFFFFFF ^ _X32)]
        block += _one_of(numbers, _ERROR | errno.ENOSYS)
        # Only whoever asks for a socket goes on.
        block += [_operation(_EQUAL, _SOCKET[architecture], hit=1), _operation(_RETURN, _ALLOW)]
        block += [_operation(_LOAD, _FIRST_ARGUMENT), *_one_of(_FAMILIES, _ALLOW)]
        block += [_operation(_RETURN, _ERROR | errno.EAFNOSUPPORT)]
        program += [_operation(_EQUAL, architecture, miss=len(block)), *block]
    return b"".join([*program, _operation(_RETURN, _ALLOW)])


def _one_of(numbers: tuple[int, ...], answer: int) -> list[bytes]:
    """Return what answers with ``answer`` if the number is one of these, and goes on if not."""
    last = len(numbers) - 1
    return [
        *(
            _operation(_EQUAL, number, hit=last - place)
            for place, number in enumerate(numbers[:-1])
        ),
        _operation(_EQUAL, numbers[-1], miss=1),
        _operation(_RETURN, answer),
    ]


def _operation(code: int, value: int, hit: int = 0, miss: int = 0) -> bytes:
    return struct.pack("=HBBI", code, hit, miss, value)
