"""Programs that mean harm, by name. `{file}`, `{folder}`, `{pid}` and `{port}` are the sentinels they are set on."""

HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "thread bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "process pool": "import subprocess\nwhile True:\n    subprocess.Popen(['/bin/sleep', '60'])",
    "endless output": "while True:\n    print('x' * 10_000)",
    "endless errors": "import os\nwhile True:\n    os.write(2, b'x' * 10_000)",
    "endless loop": "while True:\n    pass",
    "loop that catches all": "while True:\n    try:\n        raise KeyboardInterrupt\n    except BaseException:\n        pass",
    "deaf to signals": "import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
    "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
    "sleep": "import time\ntime.sleep(600)",
    "connection": "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5).send(b'hello')",
    "datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hello', ('127.0.0.1', {port}))",
    "listening": "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 0))\ns.listen()\ns.accept()",
    "deletes a file": "import os\nos.remove({file!r})",
    "deletes everything": "import shutil\nshutil.rmtree({folder!r}, ignore_errors=True)\n"
    "shutil.rmtree('/', ignore_errors=True)\n1 / 0",
    "overwrites a file": "open({file!r}, 'w').write('gone')",
    "truncates a file": "import os\nos.truncate({file!r}, 0)",
    "moves a file": "import os\nos.rename({file!r}, {file!r} + '.old')",
    "writes through a link": "import os\nos.symlink({file!r}, 'link')\nopen('link', 'w').write('gone')",
    "writes beside": "open({folder!r} + '/new', 'w').write('here')",
    "huge list": "x = [0] * 10**11",
    "memory bit by bit": "x = []\nwhile True:\n    x.append(bytearray(2**20))",
    "shared memory": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\nfor _ in range(10):\n"
    "    one = libc.shmget(0, 50 << 20, 0o1600)\n    at = libc.shmat(one, None, 0)\n    assert one >= 0 and at\n"
    "    ctypes.memset(at, 1, 50 << 20)\n    libc.shmdt(ctypes.c_void_p(at))",
    "files in memory": "import os\nfor _ in range(20):\n    file = os.memfd_create('x')\n    for _ in range(7):\n"
    "        os.write(file, bytes(2**20))",
    "zip bomb": "import zlib\ndata = zlib.compress(bytes(10**7))\nx = []\nwhile True:\n    x.append(zlib.decompress(data))",
    "huge integer": "x = 10 ** 10 ** 9",
    "slow expression": "import re\nre.match(r'(a+)+b', 'a' * 60)",
    "huge file": "with open('big', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))",
    "many files": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').write(bytes(2**16))",
    "kills all": "import os, time\nos.kill(-1, 9)\ntime.sleep(600)",
    "kills its parent": "import os, time\nos.kill(os.getppid() or {pid}, 9)\ntime.sleep(600)",
    "kills another": "import os\nos.kill({pid}, 9)",
    "daemon": "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
    "            time.sleep(600)\n        os._exit(0)\n1 / 0",
    "shell": "import os\nassert os.system('rm -rf {folder}') == 0",
    "other program": "import os\nos.execv('/bin/sleep', ['sleep', '600'])",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return [f(x)]\nsorted([1, 2], key=f)",
    "bad pointer": "import ctypes\nctypes.string_at(8)",
    "abort": "import os\nos.abort()",
    "new namespaces": "import ctypes, os\nlibc = ctypes.CDLL(None)\nassert libc.unshare(0x10000000) == 0",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
    "reads its input": "x = input()",
    "leaves early": "raise SystemExit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "closes everything": "import os, time\nos.closerange(0, 100)\ntime.sleep(600)",
    "writes everywhere": "import os\nfor number in range(100):\n    try:\n        os.write(number, b'nonsense' * 100)\n"
    "    except OSError:\n        pass\n1 / 0",
    "strange error": "class Strange(Exception):\n    def __str__(self):\n        while True:\n            pass\nraise Strange",
    "open quote": 'x = """',
    "no text": "x = '\ud800\0'",
}
# Reading is not held back without namespaces.
CURIOUS = {
    "reads a file": "open({file!r}).read()",
    "reads passwords": "open('/etc/passwd').read()",
    "reads other processes": "import os\nassert any(name.isdigit() for name in os.listdir('/proc'))",
    "reads the folder": "import os\nassert os.listdir({folder!r})",
}
