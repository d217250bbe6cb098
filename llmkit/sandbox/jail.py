"""Runs one untrusted program. A script of its own, started by `llmkit.sandbox`; needs nothing but the standard library.

Arguments: the fields of `Spec`; stdin: the program and its test; stdout: `passed`, `failed` or `timeout`, or `broken` where
the isolation asked for cannot be had, a newline, and why. Two processes: this one locks itself in, forks the program, and
ends it with SIGKILL; in namespaces the program is process 1 of its own, so that whatever it started ends with it.

namespaces (Linux 5.14 or newer): no network; the file system is a small tmpfs with Python's library in it, read-only; no
other process to be seen; no capabilities, and no way to new ones; no memory that no limit counts. After bubblewrap
(github.com/containers/bubblewrap).
limits: no process or thread may be started and no file may grow; an audit hook refuses network and changes of files. Guards
against accidents, not against malice.

Knows nothing of problems and scores. A program that sets out to forge its verdict can: it shares a process with the test.
No module is imported that can be done without: each costs milliseconds, and this starts once for every program.
"""

import ctypes
import os
import resource
import select
import struct
import sys

NOBODY = 65534
# <linux/prctl.h>, <linux/sched.h>, <linux/mount.h>, <linux/capability.h>; numbers of new calls are the same everywhere.
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
USER, MOUNTS, PIDS, NETWORK, IPC, HOST_NAME = 0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000
BIND, RECURSIVE, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY, NO_SUID, NO_DEVICES = 442, -100, 0x8000, 1, 2, 4
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
# <linux/seccomp.h>, <linux/audit.h>: each machine's own way to call, and its numbers of shmget, memfd_create and the old ipc.
SECCOMP, FILTER = 22, 2
OWN_CALLS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3, "ppc64le": 0xC0000015, "s390x": 0x80000016}
UNBOUNDED = {
    **{"x86_64": (29, 319), "aarch64": (194, 279), "riscv64": (194, 279)},
    **{"ppc64le": (395, 360, 117), "s390x": (395, 350, 117)},
}
CAPABILITIES_V3 = 0x20080522
SCRATCH = "/tmp"  # noqa: S108 - where `tempfile` looks, in a file system of its own
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
KILL = 9  # SIGKILL: the signal module takes 5 ms to import
DEATH_SECONDS = 0.5
VERDICT_BYTES = 4096  # what a pipe takes in one piece

# What the audit hook refuses where there are no namespaces: an event, or a family of events that ends with a dot.
FORBIDDEN = (
    *("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.", "pty.", "os.startfile"),
    *("os.kill", "os.killpg", "signal.pthread_kill", "syslog.", "resource."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.utime", "shutil."),
    *("os.chmod", "os.chown", "os.chflags", "os.lchmod", "os.lchown", "os.lockf", "os.setxattr", "os.removexattr", "os.mkfifo"),
    *("socket.", "ctypes.", "sqlite3.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser."),
)
HARMLESS = {"socket.__new__"}  # one that is never connected: asyncio wakes itself through a pair
# Modules in C that touch files or memory without an event.
FORBIDDEN_MODULES = {"_ctypes", "_sqlite3", "_gdbm", "_dbm", "_posixshmem", "readline"}


class Spec:
    """What `llmkit.sandbox` asks for, in the order of the command line."""

    def __init__(
        self, isolation: str, seconds: str, memory: str, disk: str, processes: str, length: str, *libraries: str
    ) -> None:
        self.isolated = isolation == "namespaces"
        self.seconds = float(seconds)
        self.memory_bytes, self.disk_bytes, self.processes = int(memory), int(disk), int(processes)
        self.length = int(length)  # bytes of stdin that are the program; the rest is its test
        self.libraries = libraries


def main() -> None:
    spec = Spec(*sys.argv[1:])
    sources = sys.stdin.buffer.read()
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        if spec.isolated:
            enter_namespaces(spec)
        else:
            become_nobody()
    except OSError as error:
        tell(1, "broken", f"{error.strerror}: {error.filename}")
        return
    child = os.fork()
    if child == 0:
        os.setsid()
        if spec.isolated:
            prctl(ctypes.CDLL(None, use_errno=True), PARENT_DEATH_SIGNAL, KILL)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(reader)
        os.close(null)
        attempt(spec, [sources[: spec.length], sources[spec.length :]], writer)
    os.close(writer)
    tell(1, *supervise(child, reader, spec.seconds))


def tell(descriptor: int, verdict: str, why: str) -> None:
    os.write(descriptor, f"{verdict}\n{why}".encode("utf-8", "replace")[:VERDICT_BYTES])


def supervise(child: int, reader: int, seconds: float) -> tuple[str, str]:
    """The program's verdict, or how it died. Returns after `seconds` at the latest, and the program is dead then."""
    ready, _, _ = select.select([reader], [], [], seconds)
    verdict, _, why = (os.read(reader, VERDICT_BYTES) if ready else b"").decode("utf-8", "replace").partition("\n")
    # A pipe that was closed without a word is closed by death a moment before there is a status.
    grace = 0 if verdict or not ready else DEATH_SECONDS
    status = os.waitstatus_to_exitcode(end(child, grace))
    if not ready:
        return "timeout", f"no end after {seconds:g} s"
    if verdict in ("passed", "failed"):
        return verdict, why
    return "failed", f"killed by signal {-status}" if status < 0 else "ended its process before its test did"


def end(child: int, grace: float) -> int:
    """Wait `grace` seconds for the child's own end, then kill it. Returns its status."""
    for _ in range(round(grace / 0.01)):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        select.select([], [], [], 0.01)
    os.kill(child, KILL)
    return os.waitpid(child, 0)[1]


def attempt(spec: Spec, sources: list[bytes], writer: int) -> None:
    """Run the program, then its test, say how it went, and end this process."""
    me = os.getpid()
    module = type(sys)("program")  # a module: dataclasses and pickle look theirs up by name
    sys.modules["program"] = module
    verdict, why = "failed", ""
    try:
        limit(spec)
        # Compiled apart: an open quote in the one cannot swallow the other.
        for source in sources:
            exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what a jail is for
        verdict = "passed"
    except BaseException as error:  # noqa: BLE001 - whatever a strange program raises is its verdict, SystemExit too
        why = said_of(error)
    if os.getpid() == me:  # not a fork of the program's own that ran on to here
        tell(writer, verdict, why)
    os._exit(0)


def said_of(error: BaseException) -> str:
    """One line; `str()` of a strange exception is code of the program's own."""
    if isinstance(error, SystemExit):
        return "ended before its test did"
    try:
        text = " ".join(str(error)[:200].split())
    except BaseException:  # noqa: BLE001 - as above
        text = ""
    return f"{type(error).__name__[:60]}: {text}" if text else type(error).__name__[:60]


def limit(spec: Spec) -> None:
    """Lower what this process may use, for good; and hang the audit hook where there are no namespaces."""
    limits = {
        "RLIMIT_AS": spec.memory_bytes,
        "RLIMIT_CPU": int(spec.seconds) + 2,
        "RLIMIT_FSIZE": spec.disk_bytes if spec.isolated else 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        # The one that waits outside counts as well.
        "RLIMIT_NPROC": spec.processes + 1 if spec.isolated else 0,
    }
    for name, value in limits.items():
        if (which := getattr(resource, name, None)) is not None:
            _, most = resource.getrlimit(which)
            allowed = value if most == resource.RLIM_INFINITY else min(value, most)
            try:
                resource.setrlimit(which, (allowed, allowed))
            except (ValueError, OSError):
                # macOS has RLIMIT_AS in name only.
                if sys.platform == "linux":
                    raise
    if not spec.isolated:
        sys.addaudithook(refuse)


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook: PermissionError for what a program has no need of."""
    family = event.partition(".")[0] + "."
    if (event in FORBIDDEN or family in FORBIDDEN) and event not in HARMLESS:
        raise PermissionError(f"{event} is not allowed here")
    if event == "import" and arguments[0] in FORBIDDEN_MODULES:
        raise PermissionError(f"{arguments[0]} is not allowed here")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        raise PermissionError("writing files is not allowed here")


def become_nobody() -> None:
    """Give up root for good, if this is root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def enter_namespaces(spec: Spec) -> None:
    """Lock this process, and all it will fork, in. Raises OSError, with the step in `filename`, where the system refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.getuid() == 0
    write("/proc/self/oom_score_adj", "1000")  # the first to go where memory runs out
    if not root:
        own_namespace(libc)
    call(libc, "unshare", MOUNTS | PIDS | NETWORK | IPC | HOST_NAME)
    sysctl = os.open("/proc/sys/user", os.O_PATH | os.O_DIRECTORY)
    change_root(libc, spec)
    if root:
        # Root itself is subject to no limit of processes.
        become_nobody()
        call(libc, "unshare", USER)
    # Within one more user namespace the program would hold every capability again, and could mount a tmpfs of any size.
    write("max_user_namespaces", "0", folder=sysctl)
    os.close(sysctl)
    drop_capabilities(libc)
    forbid_memory_without_limit(libc)


def own_namespace(libc: ctypes.CDLL) -> None:
    """A user namespace that knows this user alone: what an ordinary user needs to make the others."""
    user, group = os.getuid(), os.getgid()
    call(libc, "unshare", USER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{user} {user} 1")
    write("/proc/self/gid_map", f"{group} {group} 1")


def change_root(libc: ctypes.CDLL, spec: Spec) -> None:
    """A tmpfs as `/` with the libraries read-only in it, three devices, and SCRATCH to work in; the old root is let go."""
    call(libc, "mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)
    new = os.path.dirname(os.path.abspath(__file__))  # a folder that surely exists, and that no program needs
    options = f"size={spec.disk_bytes},nr_inodes=4096,mode=755".encode()
    call(libc, "mount", b"tmpfs", new.encode(), b"tmpfs", NO_SUID | NO_DEVICES, options)
    for path in spec.libraries:
        bring(libc, path, new, read_only=True)
    for path in DEVICES:
        bring(libc, path, new, read_only=False)
    os.mkdir(f"{new}{SCRATCH}")
    os.chmod(f"{new}{SCRATCH}", 0o777)  # noqa: S103 - of this tmpfs, which one program alone sees
    os.chdir(new)
    call(libc, "syscall", PIVOT_ROOT[os.uname().machine], b".", b".")
    call(libc, "umount2", b".", DETACH)
    os.chdir(SCRATCH)


def bring(libc: ctypes.CDLL, path: str, new: str, *, read_only: bool) -> None:
    """The same file or folder at the same place below `new`; a link as a link."""
    target = new + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT))
    call(libc, "mount", path.encode(), target.encode(), None, BIND | RECURSIVE, None)
    if read_only:
        # Adds to the flags of every mount below, which a plain remount would not.
        attributes = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID | NO_DEVICES, 0, 0, 0)
        size = ctypes.sizeof(attributes)
        call(libc, "syscall", MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, ctypes.byref(attributes), size)


def drop_capabilities(libc: ctypes.CDLL) -> None:
    prctl(libc, NO_NEW_PRIVILEGES, 1)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0)
    call(libc, "capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def forbid_memory_without_limit(libc: ctypes.CDLL) -> None:
    """No System V shared memory and no files in memory: both stay when they are unmapped, so no limit of memory counts them.

    A filter of calls (seccomp, classic BPF); calls of another architecture, whose numbers mean others, are refused as well.
    """
    machine = os.uname().machine
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    tests = [(at_least, 0x40000000), *((equal, number) for number in UNBOUNDED[machine])]  # the first: x32 within x86_64
    program = [
        *((load, 0, 0, 4), (equal, 0, len(tests) + 2, OWN_CALLS[machine]), (load, 0, 0, 0)),
        *((test, len(tests) - place, 0, value) for place, (test, value) in enumerate(tests)),
        *((end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x00050001)),  # allowed; EPERM
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    whole = struct.pack("@HP", len(program), ctypes.addressof(code))
    call(libc, "prctl", SECCOMP, FILTER, whole, 0, 0)


def prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    call(libc, "prctl", option, value, 0, 0, 0)


def call(libc: ctypes.CDLL, name: str, *arguments: object) -> None:
    # As longs: `syscall` and `prctl` read whole registers.
    if getattr(libc, name)(*(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"{name}{arguments[:2]}")


def write(path: str, text: str, *, folder: int | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
